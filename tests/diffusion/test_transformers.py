"""PixArt's and Sana's transformers as teachers: prediction, gradient, a step, errors."""

import diffusers
import pytest
import torch

from builders import small
from builders.changes import random_weights, relative_error
from builders.diffusion import loss_of, teacher_inputs
from diva_rs import Recipe, Teacher, Trainer
from diva_rs.errors import ConfigError, ShapeError

pytestmark = pytest.mark.parity

WIDTH = 20  # of the text encoder's tokens


def pixart(**changes):
    fields = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "cross_attention_dim": 16}
    fields |= {"sample_size": 8, "caption_channels": WIDTH, "norm_num_groups": 4, **changes}
    return random_weights(diffusers.PixArtTransformer2DModel(**fields))


def sana(**changes):
    fields = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "cross_attention_dim": 16}
    fields |= {"num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "caption_channels": WIDTH}
    fields |= {"in_channels": 4, "out_channels": 4, "sample_size": 8, **changes}
    return random_weights(diffusers.SanaTransformer2DModel(**fields))


def with_sizes(model, noisy, timesteps, condition):
    size = torch.tensor([[64.0, 96.0]], dtype=noisy.dtype).repeat(3, 1)
    added = {"resolution": size, "aspect_ratio": size[:, :1] / size[:, 1:]}
    return model(noisy, condition, timesteps, added_cond_kwargs=added).sample[:, :4]


def as_it_is(model, noisy, timesteps, condition):
    return model(noisy, condition, timesteps).sample[:, :4]


def scaled_time(model, noisy, timesteps, condition):
    return model(noisy, condition, timesteps * 0.001).sample


MODELS = {
    "pixart": (pixart, {}, as_it_is),
    "pixart-with-sizes": (
        pixart,
        {"use_additional_conditions": True, "num_attention_heads": 3, "cross_attention_dim": 24},
        with_sizes,
    ),
    "pixart-without-projection": (pixart, {"caption_channels": None, "cross_attention_dim": 20}, as_it_is),
    "sana": (sana, {}, as_it_is),
    "sana-scaled-time": (
        sana,
        {"timestep_scale": 0.001, "patch_size": 2, "interpolation_scale": 1},
        scaled_time,
    ),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_prediction_and_gradient_are_diffusers_own(name, dtype):
    make, changes, direct = MODELS[name]
    model = make(**changes).to(dtype).eval()
    _, timesteps, condition = teacher_inputs(4, 5, WIDTH, dtype)
    noisy = torch.randn(3, 4, 8, 12, dtype=dtype)
    teacher = Teacher(model)
    assert teacher.slots.tokens == WIDTH and teacher.latent_shape == (4, 8, 8)
    found = []
    for predict in (teacher.denoise, lambda *inputs: direct(model, *inputs)):
        prediction = predict(noisy, timesteps, condition)
        found.append((prediction.detach(), *torch.autograd.grad(loss_of(prediction), condition)))
    for ours, theirs in zip(*found, strict=True):
        assert relative_error(ours, theirs) <= (1e-10 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize(
    "make, scheduler",
    [(pixart, small.scheduler()), (sana, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))],
)
def test_a_step_trains_clip(make, scheduler):
    text = torch.randn(1, 4, WIDTH)
    teacher = Teacher(make(), vae=small.small_vae(), scheduler=scheduler, text_condition=text)
    trainer = Trainer(small.small_clip(), teacher, Recipe(choose=5, text="concat", image_size=16))
    assert trainer.backend["denoiser"].startswith("torch (there is no native network for a")
    trainer.accumulate(small.images())
    gradients = [parameter.grad for parameter in trainer.clip.visual.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert max(gradient.abs().max() for gradient in gradients) > 0


def test_what_does_not_fit_is_an_error():
    with pytest.raises(ShapeError, match="multiples of 2"):
        Teacher(pixart()).denoise(torch.zeros(3, 4, 8, 7), torch.zeros(3), torch.zeros(3, 5, WIDTH))
    with pytest.raises(ConfigError, match="distilled to read a guidance scale"):
        Teacher(sana(guidance_embeds=True))
