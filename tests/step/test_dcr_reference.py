"""DCR's step in both stages against plain PyTorch, and its run on the microworld."""

import copy

import diffusers
import pytest
import torch

import diva_rs
from builders import small
from builders.dcr import Reference, stages
from builders.reference import OPENAI, channels, gradients_of
from diva_rs import ConfigError, Recipe, Trainer

TOLERANCE = {"fp64": 1e-10, "fp32": 1e-5}
PRESETS = [name for name in Recipe.names() if name.startswith("dcr-")]


def compare(name, stage, precision, low_rank=None, batch=4, group=3, **fields):
    dtype = torch.float64 if precision == "fp64" else torch.float32
    recipe, steps = Recipe.named(name), (None, 0) if stage == 1 else (0, None)
    recipe = recipe.replace(stages=stages(recipe, *steps), steps=None, precision=precision)
    if low_rank is None:
        recipe = recipe.replace(low_rank=None, low_rank_alpha=None, low_rank_bias=False)
    recipe = recipe.replace(image_size=None, contrast_group=group, low_rank_targets=("*",), **fields)
    clip, unet, scheduler = small.small_clip(dtype), small.small_unet(dtype), small.scheduler()
    if "official" in name:  # its target is the velocity
        scheduler = diffusers.DDPMScheduler.from_config(scheduler.config, prediction_type="v_prediction")
    text = torch.randn(1, 77, small.WIDTH, generator=torch.Generator().manual_seed(3), dtype=dtype)
    teacher = diva_rs.Teacher(unet, scheduler=scheduler, text_condition=text, latent_shape=(4, 8, 8))
    trainer = Trainer(clip, teacher, recipe)
    if low_rank is not None:
        for pair in trainer.step_modules.low_rank.pairs:
            pair.b.data.normal_(generator=torch.Generator().manual_seed(9), std=0.1)
        trainer.step_modules.merge()
    twin = copy.deepcopy(clip).requires_grad_(stage == 2)
    projector = copy.deepcopy(trainer.projector).requires_grad_(stage == 1)
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(batch, 4, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    images = small.images(batch, dtype=dtype)
    given = {"images": images, "augmented": images.flip(-1) * 0.9, "latents": latents}
    draws = diva_rs.draw(seed=11, ids=range(batch), draws=1, latent_shape=(4, 8, 8))
    outcome = trainer.train(given, draws=draws)

    mean, std = (channels(values, images) for values in OPENAI)
    pixels, augmented = ((given[key] - mean) / std for key in ("images", "augmented"))
    noise, t = torch.from_numpy(draws.noise[:, 0]).to(dtype), torch.from_numpy(draws.timesteps[:, 0])
    reference = Reference(twin, projector, copy.deepcopy(unet), scheduler, text)
    plain = stage == 1 and "official" not in name
    assert list(outcome.losses) == ["loss", "denoising" if plain else "contrast"]
    if plain:
        theirs = reference.first(pixels, latents, noise, t)
    else:
        theirs = reference.contrast(pixels, augmented, latents, noise, t, group)
    theirs.backward()
    theirs = float(theirs.detach())
    assert abs(float(outcome.losses["loss"]) - theirs) <= TOLERANCE[precision] * abs(theirs)
    return trainer, gradients_of({"": twin, "projector.": projector})


@pytest.mark.parity
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize(("micro_batch", "group"), [(None, 3), (1, 4), (2, 2)])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("account", ["dcr", "dcr-official"])
def test_both_stages_are_those_of_plain_pytorch(account, stage, micro_batch, group, backend, precision):
    name, sizes = f"{account}-openai-vit-l-14-224", {"micro_batch": micro_batch, "group": group}
    trainer, expected = compare(name, stage, precision, backend=backend, **sizes)
    ours = small.gradients(trainer)
    assert all(key.startswith("projector.") == (stage == 1) for key in expected) and len(expected) > 5
    assert small.worst(ours, expected) <= TOLERANCE[precision]


@pytest.mark.parity
@pytest.mark.parametrize("name", PRESETS)
def test_the_low_rank_matrices_of_stage_2_get_the_gradient_of_their_product(name):
    trainer, expected = compare(name, 2, "fp64", low_rank=True)
    ours, low_rank = small.gradients(trainer), trainer.step_modules.low_rank
    assert (low_rank.rank, low_rank.alpha) == (16, 16.0)
    theirs = {key: expected[key] for key in ours if "lora_" not in key}
    for matrix, _, a, b in low_rank.pairs:  # W = W0 + B A
        gradient = matrix.of(expected[matrix.key])
        theirs |= {f"{matrix.name}.lora_A": b.T @ gradient, f"{matrix.name}.lora_B": gradient @ a.T}
    theirs = {key: value.detach() for key, value in theirs.items()}
    assert any(key.endswith("bias") for key in ours) and small.worst(ours, theirs) <= 1e-10


def test_a_teacher_without_tokens_is_an_error_that_says_what_to_give():
    unet = diffusers.DiTTransformer2DModel(sample_size=8, num_layers=1, num_attention_heads=2, patch_size=2)
    with pytest.raises(ConfigError, match=r"dcr-.* through tokens.* give Stable Diffusion 2\.1"):
        Trainer(
            small.small_clip(), diva_rs.Teacher(unet, scheduler=small.scheduler()), Recipe.named(PRESETS[0])
        )
