"""From a loader's batch to the tensors of a step, in the native core: against torch and diffusers, bit for
bit where both do the same arithmetic."""

import itertools

import pytest
import torch
import torch.nn.functional as nn_f
from torch import Tensor

import diva_rs
from builders.reference import IMAGENET, OPENAI, channels
from builders.small import SIDE, WIDTH, images, scheduler, small_clip, small_teacher, small_unet, small_vae
from diva_rs import Recipe
from diva_rs.step.modules import StepModules

pytestmark = pytest.mark.parity

LATENT = 16  # side of the VAE's input
PRECISION = {torch.float64: "fp64", torch.float32: "fp32"}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
RECIPES = [
    {"pixels": pixels, "vae_pixels": vae_pixels, "resize": resize, "antialias": antialias}
    for pixels, vae_pixels, resize, antialias in itertools.product(
        ("unit", "clip", "symmetric"), ("symmetric", "official"), ("bicubic", "bilinear"), (True, False)
    )
]


def modules(
    dtype: torch.dtype = torch.float32, teacher: diva_rs.Teacher | None = None, **fields
) -> StepModules:
    recipe = Recipe(precision=PRECISION[dtype], **fields)
    return StepModules(small_clip(dtype), teacher or small_teacher(dtype), recipe)


def pixel_teacher() -> diva_rs.Teacher:
    text = torch.randn(1, 40, WIDTH)
    return diva_rs.Teacher(small_unet(channels=3), scheduler=scheduler(), text_condition=text)


def declared(unit: Tensor, pixels: str) -> Tensor:
    mean, std = (channels(values, unit) for values in OPENAI)
    return {"unit": unit, "clip": (unit - mean) / std, "symmetric": unit * 2 - 1}[pixels]


def read(made: StepModules, item, epoch: int = 0):
    inputs = made.inputs(item, None, epoch, None, 0)
    return inputs.images, inputs.targets


def interpolate(pixels: Tensor, side: int, fields: dict) -> Tensor:
    return nn_f.interpolate(
        pixels, (side, side), mode=fields["resize"], antialias=fields["antialias"], align_corners=False
    )


def expected_pixels(given: Tensor, fields: dict) -> tuple[Tensor, Tensor]:
    """CLIP's and the VAE's input in plain PyTorch, for images of another size than either."""
    mean, std = (channels(values, given) for values in OPENAI)
    unit = {"unit": given, "clip": given * std + mean, "symmetric": (given + 1) / 2}[fields["pixels"]]
    normalised = given if fields["pixels"] == "clip" else (unit - mean) / std
    if fields["resize"] == "bilinear" and not fields["antialias"]:
        clip = interpolate(normalised, SIDE, fields)
    else:
        clip = (interpolate(unit, SIDE, fields) - mean) / std
    if fields["vae_pixels"] == "official":
        imagenet_mean, imagenet_std = (channels(values, given) for values in IMAGENET)
        return clip, (interpolate(normalised, LATENT, fields) * imagenet_std + imagenet_mean) * 2 - 1
    if fields["pixels"] == "symmetric":
        return clip, interpolate(given, LATENT, fields)
    return clip, interpolate(unit, LATENT, fields) * 2 - 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("fields", RECIPES, ids=lambda fields: "-".join(map(str, fields.values())))
def test_pixels_and_latents(fields, dtype):
    unit = torch.rand(2, 3, 40, 48, generator=torch.Generator().manual_seed(5), dtype=dtype)
    given = declared(unit, fields["pixels"])
    made = modules(dtype, **fields)
    clip, (latents, *_) = read(made, given)
    want_clip, want_vae = expected_pixels(given, fields)
    assert torch.equal(clip, want_clip)
    vae = small_vae(dtype)
    with torch.no_grad():
        want = vae.encode(want_vae).latent_dist.mean * vae.config.scaling_factor
    assert float((latents - want).norm()) <= TOLERANCE[dtype] * float(want.norm())
    assert made.backend["vae"] == "native"


def test_a_teacher_of_pixels_denoises_the_pixels():
    made, batch = modules(teacher=pixel_teacher(), resize="bicubic"), images(2)
    _, (latents, *_) = read(made, batch)
    assert torch.equal(latents, interpolate(batch, 8, {"resize": "bicubic", "antialias": True}) * 2 - 1)
    assert "pixels" in made.backend["vae"]


def test_what_comes_ready_is_taken_as_it_is():
    made = modules()
    ready, given = declared(images(2), "clip"), torch.randn(2, 4, 8, 8)
    clip, (latents, *_) = read(made, {"pixel_values": ready, "latents": given, "images": images(2, seed=9)})
    assert clip.data_ptr() == ready.data_ptr() and torch.equal(latents, given)
    assert made.backend["vae"] == "not needed yet"
    # Alone, they are what the VAE's input is made from.
    _, (alone, *_) = read(made, {"pixel_values": ready})
    _, (unit, *_) = read(made, images(2))
    assert float((alone - unit).norm()) <= 1e-5 * float(unit.norm())


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_sample_of_the_posterior_is_a_function_of_the_key(backend):
    made, batch = modules(latent="sample", backend=backend), images(3)
    ids = ["cat", "dog", "cow"]
    _, (latents, *_) = read(made, {"images": batch, "ids": ids})
    again = {"images": batch.flip(0), "ids": ids[::-1]}
    assert torch.equal(read(made, again)[1][0].flip(0), latents)
    assert not torch.equal(read(made, again, epoch=1)[1][0].flip(0), latents)

    # mean + std * noise, with standard normal noise
    pixels = interpolate(batch, LATENT, {"resize": "bicubic", "antialias": True}) * 2 - 1
    with torch.no_grad():
        posterior = small_vae().encode(pixels).latent_dist
    noise = (latents / 0.18215 - posterior.mean) / posterior.std
    assert abs(float(noise.mean())) < 0.15 and abs(float(noise.std()) - 1) < 0.15  # of 768 values
    assert torch.equal(read(made, {"images": batch, "ids": ids})[1][0], latents)


def test_both_encoders_sample_the_same_latents():
    item = {"images": images(3), "ids": [5, 6, 7]}
    native, python = (read(modules(latent="sample", backend=b), item)[1][0] for b in ("native", "torch"))
    assert float((native - python).norm()) <= 1e-5 * float(python.norm())


@pytest.mark.parametrize(
    "fields",
    [{"choose": 5}, {"choose": 20, "replacement": True}, {"bernoulli": True, "density": 0.4}],
    ids=["choose", "replacement", "bernoulli"],
)
def test_draws_are_those_of_the_draw_plan(fields):
    made = modules(seed=3, draws=3, timesteps="stratified", **fields)
    ids = [4, 9, 2]
    _, (_, noise, timesteps, choice, *_) = read(made, {"images": images(3), "ids": ids}, epoch=2)
    rules = {"density" if name == "density" else name: value for name, value in fields.items()}
    rules.pop("bernoulli", None)
    plan = diva_rs.step.draws.DrawPlan(3, 3, (4, 8, 8), 16, timesteps="stratified", **rules)
    drawn = plan.draw(ids, epoch=2)
    assert torch.equal(timesteps, torch.from_numpy(drawn.timesteps))
    assert torch.equal(noise, torch.from_numpy(drawn.noise))
    assert torch.equal(choice, torch.from_numpy(drawn.tokens))


def test_explicit_draws_are_taken_as_they_are():
    drawn = diva_rs.draw(seed=8, ids=[1, 2], draws=2, latent_shape=(4, 8, 8), patches=16, choose=5)
    inputs = modules(choose=5).inputs(images(2), None, 0, drawn, 0)
    assert torch.equal(inputs.targets[1], torch.from_numpy(drawn.noise))
    assert torch.equal(inputs.targets[2], torch.from_numpy(drawn.timesteps))
    assert torch.equal(inputs.targets[3], torch.from_numpy(drawn.tokens))
