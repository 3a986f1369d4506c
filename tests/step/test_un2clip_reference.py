"""un2CLIP's step against diffusers' own Stable unCLIP pipeline, and its run on the microworld."""

import copy
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import interpolate

import diva_rs
from builders import small
from builders.reference import OPENAI, channels, gradients_of
from builders.run_ranks import environment
from builders.unclip import reference_loss, unclip_teacher
from diva_rs import Recipe, Teacher, Trainer
from diva_rs.errors import ConfigError

PRESET = Recipe.named("un2clip-openai-vit-l-14-224").replace(image_size=None)
TOLERANCE = {"fp64": 1e-10, "fp32": 1e-5}


@pytest.mark.parity
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("level, micro_batch, draws", [(None, None, 1), (0, 1, 2), (400, 2, 1)])
def test_loss_and_gradients_are_those_of_plain_pytorch(level, micro_batch, draws, backend, precision):
    dtype = torch.float64 if precision == "fp64" else torch.float32
    recipe = PRESET.replace(precision=precision, backend=backend, micro_batch=micro_batch, draws=draws)
    clip, teacher = small.small_clip(dtype), unclip_teacher(dtype, level)
    twin = copy.deepcopy(clip)
    trainer = Trainer(clip, teacher, recipe)
    assert not list(trainer.projector.parameters())
    images = small.images(3, dtype=dtype)
    given = diva_rs.draw(seed=11, ids=range(3), draws=draws, latent_shape=(4, 8, 8))
    ours = trainer.accumulate(images, draws=given)

    mean, std = (channels(values, images) for values in OPENAI)
    pixels = interpolate(images, (16, 16), mode="bicubic", antialias=True, align_corners=False) * 2 - 1
    latents = teacher.vae.encode(pixels).latent_dist.mode().detach() * teacher.vae.config.scaling_factor
    theirs = reference_loss(twin.visual, level or 0, (images - mean) / std, latents, given)
    theirs.backward()
    tolerance = TOLERANCE[precision]
    assert abs(float(ours) - float(theirs.detach())) <= tolerance * abs(float(theirs.detach()))
    assert small.worst(small.gradients(trainer), gradients_of({"": twin})) <= tolerance
    assert all(parameter.grad is None for parameter in teacher.denoiser.parameters())


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


@pytest.mark.invariant
@pytest.mark.timeout(600)
def test_a_killed_run_on_the_microworld_ends_in_the_same_bits(tmp_path):
    command = [sys.executable, "-m", "builders.unclip", str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr[-3000:]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    newest = [path.name for path in (straight / "checkpoints").iterdir()]
    assert "step-00000006" in newest and len((killed / "metrics.jsonl").read_text().splitlines()) == 6
    for name in ("clip.safetensors", "checkpoints/step-00000006/optimizer.safetensors"):
        assert (straight / name).read_bytes() == (killed / name).read_bytes()
