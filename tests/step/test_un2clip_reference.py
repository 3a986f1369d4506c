"""un2CLIP's step against diffusers' own Stable unCLIP pipeline, and its run on the microworld."""

import copy

import pytest
import torch
from torch.nn.functional import interpolate

import diva_rs
from builders import small
from builders.reference import OPENAI, channels, gradients_of
from builders.unclip import reference_loss, small_unclip, unclip_teacher
from diva_rs import Recipe, Teacher, Trainer
from diva_rs.errors import ConfigError

PRESET = Recipe.named("un2clip-openai-vit-l-14-224").replace(image_size=None)
TOLERANCE = {"fp64": 1e-10, "fp32": 1e-5}


def pooled_noise(trainer, images, draws=None, ids=None, epoch=0):
    """The noise (B, N, V) that a step adds to the embeddings."""
    return trainer.step_modules.inputs(images, ids, epoch, draws, 0).targets[5]


@pytest.mark.parity
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize(
    "level, fields",
    [
        (None, {}),
        (300, {"micro_batch": 1, "draws": 2}),
        (300, {"denoiser_batch": 2, "draws": 3}),
        (600, {"micro_batch": 2, "denoiser_checkpointing": True}),
    ],
)
def test_loss_and_gradients_are_those_of_plain_pytorch(level, fields, backend, precision):
    dtype = torch.float64 if precision == "fp64" else torch.float32
    recipe = PRESET.replace(precision=precision, backend=backend, **fields)
    clip, teacher = small.small_clip(dtype), unclip_teacher(dtype, level)
    twin = copy.deepcopy(clip)
    trainer = Trainer(clip, teacher, recipe)
    assert not list(trainer.projector.parameters())
    images = small.images(3, dtype=dtype)
    given = diva_rs.draw(seed=11, ids=range(3), draws=recipe.draws, latent_shape=(4, 8, 8))
    noised = pooled_noise(trainer, images, given) / teacher.family.pooled_noise.to(dtype)
    ours = trainer.accumulate(images, draws=given)

    mean, std = (channels(values, images) for values in OPENAI)
    pixels = interpolate(images, (16, 16), mode="bicubic", antialias=True, align_corners=False) * 2 - 1
    latents = teacher.vae.encode(pixels).latent_dist.mode().detach() * teacher.vae.config.scaling_factor
    theirs = reference_loss(twin.visual, level or 0, (images - mean) / std, latents, given, noised)
    theirs.backward()
    tolerance = TOLERANCE[precision]
    assert abs(float(ours) - float(theirs.detach())) <= tolerance * abs(float(theirs.detach()))
    assert small.worst(small.gradients(trainer), gradients_of({"": twin})) <= tolerance
    assert all(parameter.grad is None for parameter in teacher.denoiser.parameters())


def test_the_noise_of_an_embedding_depends_on_seed_sample_epoch_and_draw():
    level, images = 600, small.images(64)
    trainer = Trainer(small.small_clip(), unclip_teacher(level=level), PRESET.replace(draws=4))
    pipeline = small_unclip()
    kept = pipeline.image_noising_scheduler.alphas_cumprod[level]
    deviation = pipeline.image_normalizer.std[0].detach() * ((1 - kept) / kept).sqrt()
    normal = (pooled_noise(trainer, images) / deviation).flatten()  # 5120 values
    assert abs(float(normal.mean())) < 0.07 and abs(float(normal.var()) - 1) < 0.1  # five standard errors
    rows = pooled_noise(trainer, images, ids=range(64))
    assert rows.flatten(0, 1).unique(dim=0).shape == (256, 20)
    assert torch.equal(pooled_noise(trainer, images[5:7], ids=[5, 6]), rows[5:7])
    assert not torch.equal(pooled_noise(trainer, images, ids=range(64), epoch=1), rows)


def test_a_step_changes_the_tower_alone():
    clip, teacher = small.small_clip(), unclip_teacher()
    before = copy.deepcopy(clip.state_dict())
    result = diva_rs.post_train(clip, teacher, [small.images()], PRESET, batch=4, lr=1e-3, progress=False)
    changed = {name for name, value in clip.state_dict().items() if not value.equal(before[name])}
    assert "visual.proj" in changed and all(name.startswith("visual.") for name in changed)
    assert result.report["steps"] == 1


def test_a_teacher_that_does_not_fit_is_an_error_that_says_what_to_give():
    with pytest.raises(ConfigError, match=r"un2clip.* through pooled.* through tokens: give Stable unCLIP"):
        Trainer(small.small_clip(), small.small_teacher(), PRESET)
    unet = unclip_teacher().denoiser
    unet.register_to_config(_name_or_path="")
    alone = Teacher(
        unet, vae=small.small_vae(), scheduler=small.scheduler(), text_condition=torch.zeros(1, 7, 24)
    )
    with pytest.raises(ConfigError, match="embedding is 20 wide, the teacher's condition 40"):
        Trainer(small.small_clip(), alone, PRESET)
