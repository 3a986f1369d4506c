"""Flux and Stable Diffusion 3: what the teacher predicts is what diffusers' pipelines compute."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import diva_rs
from builders import small
from builders.changes import relative_error
from builders.diffusion import loss_of
from builders.flows import (
    POOLED,
    TOKENS,
    flow_scheduler,
    flow_vae,
    flux_pipeline,
    sd3_pipeline,
    tiny_flux,
    tiny_sd3,
    unpacked,
)
from diva_rs import Recipe, Teacher, Trainer
from diva_rs.captions import ContrastSet, Judge
from diva_rs.diffusion import Condition
from diva_rs.errors import ConfigError, ShapeError

PIPELINES = {"flux": flux_pipeline, "sd3": sd3_pipeline}
MODELS = {"flux": tiny_flux, "sd3": tiny_sd3}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def recorded(pipeline: Any, **settings: Any) -> tuple[dict[str, Any], Tensor]:
    """The inputs that a pipeline of one step gives its transformer, and the prediction."""
    calls = []
    hook = pipeline.transformer.register_forward_hook(
        lambda module, args, kwargs, output: calls.append((kwargs, output[0])), with_kwargs=True
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline(height=32, width=32, num_inference_steps=1, output_type="latent", **settings)
    hook.remove()
    return calls[0]


def inputs(dtype: torch.dtype, width: int = TOKENS + POOLED, side: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    noisy = torch.randn(2, 16, side, side, generator=generator, dtype=dtype)
    condition = torch.randn(2, 3, width, generator=generator, dtype=dtype, requires_grad=True)
    return noisy, torch.tensor([12.5, 731.0], dtype=dtype), condition


@pytest.mark.parity
@pytest.mark.parametrize("kind", PIPELINES)
def test_the_prediction_is_that_of_the_pipeline(kind: str) -> None:
    pipeline = PIPELINES[kind]()
    generator = torch.Generator().manual_seed(3)
    scale = {"guidance_scale": 5.0} if kind == "flux" else {"guidance_scale": 0.0}
    given, expected = recorded(pipeline, prompt="a cat", generator=generator, **scale)
    noisy, timestep = given["hidden_states"], given["timestep"]
    if kind == "flux":
        noisy, expected, timestep = unpacked(noisy, 8), unpacked(expected, 8), timestep * 1000
    condition = Condition(given["encoder_hidden_states"], given["pooled_projections"])
    teacher = Teacher(pipeline, **({"guidance": 5.0} if kind == "flux" else {}))
    assert relative_error(teacher.denoise(noisy, timestep, condition), expected) <= 1e-6
    # The same text by the teacher's own encoding, and as tensors that the caller gives.
    pooled = Teacher(pipeline, slot="tokens")
    assert torch.equal(pooled.text("a cat"), given["encoder_hidden_states"])
    tokens = Teacher(
        pipeline, slot="tokens", pooled_projections=given["pooled_projections"], **teacher._options
    )
    assert torch.equal(
        tokens.denoise(noisy, timestep, tokens.text("a cat")), teacher.denoise(noisy, timestep, condition)
    )


@pytest.mark.parity
@pytest.mark.parametrize("kind", PIPELINES)
@torch.no_grad()
def test_captions_are_judged_in_both_slots(kind: str) -> None:
    """The losses under prompts whose tokens and pooled vectors are those that the pipeline encodes."""
    captions = ("a cat", "a dog that is big")
    pipeline, latents = PIPELINES[kind](), torch.randn(1, 16, 8, 8)
    judge = Judge(Teacher(pipeline), draws=2, seed=3)
    [[found]] = judge.losses(latents, [7], [[ContrastSet("what", captions)]], range(2))
    drawn, teacher = diva_rs.draw(3, [7], 2, (16, 8, 8)), judge.teacher
    expected = torch.zeros(2, 2)
    for row, caption in enumerate(captions):
        given, _ = recorded(pipeline, prompt=caption, guidance_scale=3.5 if kind == "flux" else 0.0)
        condition = Condition(given["encoder_hidden_states"], given["pooled_projections"])
        for n in range(2):
            noise = torch.from_numpy(drawn.noise[:, n])
            level = teacher.schedule.sigmas[int(drawn.timesteps[0, n])]
            noisy = (1 - level) * latents + level * noise
            predicted = teacher.denoise(noisy, torch.tensor([1000 * level]), condition)
            expected[row, n] = (predicted - (noise - latents)).square().mean()
    assert relative_error(torch.from_numpy(found), expected) <= 1e-5
    assert not np.allclose(found[0], found[1], rtol=1e-3)


@pytest.mark.parity
@pytest.mark.parametrize("kind", PIPELINES)
@pytest.mark.parametrize("without", ["t5", "nothing"])
def test_the_slot_that_the_condition_leaves_reads_the_empty_prompt(kind: str, without: str) -> None:
    empty = {} if without == "nothing" or kind == "flux" else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = PIPELINES[kind](**empty)
    scale = {"guidance_scale": 3.5} if kind == "flux" else {"guidance_scale": 0.0}
    given, _ = recorded(pipeline, prompt="", **scale)
    noisy, timesteps, condition = inputs(torch.float32)
    tokens, pooled = condition[..., :TOKENS].detach(), condition[..., TOKENS:].mean(dim=1).detach()
    both = Teacher(pipeline)
    expected = both.denoise(noisy, timesteps, Condition(tokens, given["pooled_projections"].expand(2, -1)))
    assert (
        relative_error(Teacher(pipeline, slot="tokens").denoise(noisy, timesteps, tokens), expected) <= 1e-6
    )
    text = given["encoder_hidden_states"]
    expected = both.denoise(noisy, timesteps, Condition(text.expand(2, -1, -1), pooled))
    alone = Teacher(pipeline, slot="pooled")
    assert (alone.slots.names, alone.condition_width, alone.text().abs().sum()) == (("pooled",), POOLED, 0)
    assert relative_error(alone.denoise(noisy, timesteps, pooled[:, None]), expected) <= 1e-6
    given_text = Teacher(pipeline, slot="pooled", text_condition=text)
    assert torch.equal(
        given_text.denoise(noisy, timesteps, pooled[:, None]),
        alone.denoise(noisy, timesteps, pooled[:, None]),
    )


@pytest.mark.parity
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", MODELS)
def test_gradients_at_the_condition(kind: str, dtype: torch.dtype) -> None:
    model = MODELS[kind]().to(dtype)
    noisy, timesteps, condition = inputs(dtype)
    prediction = Teacher(model).denoise(noisy, timesteps, condition)
    (gradient,) = torch.autograd.grad(loss_of(prediction), condition)
    call = {
        "encoder_hidden_states": condition[..., :TOKENS],
        "pooled_projections": condition[..., TOKENS:].mean(1),
    }
    if kind == "flux":
        ids = torch.tensor([(0, row, column) for row in range(4) for column in range(4)], dtype=dtype)
        patches = type(flux_pipeline())._pack_latents(noisy, 2, 16, 8, 8)
        output = model(
            patches, **call, timestep=timesteps / 1000, img_ids=ids, txt_ids=torch.zeros(3, 3, dtype=dtype),
            guidance=torch.tensor([3.5, 3.5], dtype=dtype),
        ).sample  # fmt: skip
        expected = unpacked(output, 8)
    else:
        expected = model(noisy, **call, timestep=timesteps).sample
    (expected_gradient,) = torch.autograd.grad(loss_of(expected), condition)
    assert relative_error(prediction, expected) <= TOLERANCE[dtype]
    assert relative_error(gradient, expected_gradient) <= TOLERANCE[dtype]
    assert not any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_folder_holds_all_that_training_needs(kind: str, tmp_path: Path) -> None:
    pipeline = PIPELINES[kind]()
    pipeline.save_pretrained(tmp_path)
    teacher = Teacher(str(tmp_path))
    assert (teacher.latent_shape[0], teacher.condition_width) == (16, TOKENS + POOLED)
    assert teacher.schedule.prediction_type == "flow" and len(teacher.schedule) == 1000
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    mean = pipeline.vae.encode(images).latent_dist.mean
    assert relative_error(teacher.encode(images), ((mean - 0.1159) * 0.3611).detach()) <= 1e-6
    noisy, timesteps, condition = inputs(torch.float32)
    assert torch.equal(
        teacher.denoise(noisy, timesteps, condition), Teacher(pipeline).denoise(noisy, timesteps, condition)
    )
    assert "condition: tokens, 24 wide, pooled, 16 wide" in teacher.describe()
    with pytest.raises(ConfigError, match=r"T5EncoderModel, only CLIP.* pass Teacher\(unet, text_condition"):
        Teacher(str(tmp_path), slot="tokens").text()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_trains_from_random_weights(kind: str, precision: str) -> None:
    model = MODELS[kind]()
    teacher = Teacher(model, vae=flow_vae(), scheduler=flow_scheduler())
    recipe = Recipe(
        condition="class",
        text="none",
        projector="mlp",
        timesteps="logit-normal",
        latent="sample",
        image_size=32,
        precision=precision,
        stages=({"train": ("projector", "denoiser"), "steps": 1, "optimizer": "adamw"},),
    )
    trainer = Trainer(small.small_clip(), teacher, recipe)
    before = {name: value.detach().clone() for name, value in trainer.parameters().items()}
    assert torch.isfinite(trainer.step(small.images(2)))
    changed = {name for name, value in trainer.parameters().items() if not torch.equal(value, before[name])}
    trained = {name for name in before if name.startswith(("denoiser.", "projector."))}
    # What attention leaves of a key's bias is nothing, and the text's last values go nowhere.
    assert changed <= trained and len(changed) > 0.9 * len(trained)
    assert trainer.backend["denoiser"] == "native"


def test_what_does_not_fit_is_said() -> None:
    flux = tiny_flux()
    cases: list[tuple[type[Exception], str, Any]] = [
        (ConfigError, "slot is 'text', expected \"both\"", lambda: Teacher(flux, slot="text")),
        (
            ConfigError,
            "pooled_projections is given, but slot is 'both'",
            lambda: Teacher(flux, pooled_projections=0),
        ),
        (
            ShapeError,
            r"expected a tensor \(1, 16\)",
            lambda: Teacher(flux, slot="tokens", pooled_projections=0),
        ),
        (
            ConfigError,
            r"leaves no slot to text: .*slot='tokens'",
            lambda: Teacher(flux, text_condition=torch.zeros(1, 5, TOKENS)),
        ),
        (
            ConfigError,
            "has no guidance embedding",
            lambda: Teacher(tiny_flux(guidance_embeds=False), guidance=4),
        ),
        (ConfigError, "guidance is '4', expected a number", lambda: Teacher(flux, guidance="4")),
        (ConfigError, "takes 64 channels and predicts 32", lambda: Teacher(tiny_flux(out_channels=32))),
        (ConfigError, "no option guidance", lambda: Teacher(tiny_sd3(), guidance=4.0)),
    ]
    noisy, timesteps, condition = inputs(torch.float32)
    teacher, alone = Teacher(flux), Teacher(flux, slot="tokens")
    cases += [
        (
            ConfigError,
            "trained by flow matching, but the scheduler's target is epsilon: give diffusers' FlowMatch",
            lambda: Teacher(flux, scheduler=small.scheduler()).schedule,
        ),
        (ShapeError, "multiples of 2", lambda: teacher.denoise(noisy[..., :7], timesteps, condition)),
        (
            ConfigError,
            "pass .*pooled_projections",
            lambda: alone.denoise(noisy, timesteps, condition[..., :TOKENS]),
        ),
        (
            ConfigError,
            r"text='mean': .* two slots .*use text='none', or .*slot='tokens'",
            lambda: Trainer(small.small_clip(), Teacher(flux, scheduler=flow_scheduler()), Recipe()),
        ),
    ]
    for kind, message, make in cases:
        with pytest.raises(kind, match=message):
            make()
