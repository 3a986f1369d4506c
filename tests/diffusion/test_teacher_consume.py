"""`Teacher(consume=True)`: the weights of the modules given are in memory once."""

import gc
import logging
import weakref

import pytest
import torch

from builders.small import gradients, images, scheduler, small_clip, small_teacher, small_unet, small_vae
from diva_rs import Recipe, Teacher, Trainer
from diva_rs.errors import ConfigError

pytestmark = pytest.mark.invariant


def _teacher(unet, vae, consume=True):
    text = small_teacher().text()
    return Teacher(unet, vae=vae, scheduler=scheduler(), text_condition=text, consume=consume)


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_the_step_is_the_same_and_the_weights_given_are_gone(backend):
    recipe = Recipe(precision="bf16", backend=backend, products="bf16")
    kept = Trainer(small_clip(), _teacher(small_unet(), small_vae(), consume=False), recipe)
    unet, vae = small_unet(), small_vae()
    whole = sum(tensor.nbytes for part in (unet, vae) for tensor in part.parameters())
    given = {
        name: weakref.ref(tensor.untyped_storage())
        for part in (unet, vae)
        for name, tensor in part.named_parameters()
    }
    teacher = _teacher(unet, vae)
    trainer = Trainer(small_clip(), teacher, recipe)
    assert trainer.teacher is teacher and teacher.dtype == torch.bfloat16
    losses = [float(one.accumulate(images(2))) for one in (kept, trainer)]
    assert losses[0] == losses[1]
    ours, theirs = gradients(trainer), gradients(kept)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    assert all(tensor.is_meta for part in (unet, vae) for tensor in part.parameters())
    gc.collect()
    assert not any(storage() for storage in given.values())
    held = sum(tensor.nbytes for part in (teacher.denoiser, teacher.vae) for tensor in part.parameters())
    assert held == whole / 2
    for use in (unet, vae, unet.state_dict, vae.state_dict, lambda: Teacher(unet)):
        with pytest.raises(
            ConfigError, match=r"this (UNet2DConditionModel|AutoencoderKL) is empty.*consume="
        ):
            use()
    with pytest.raises(ConfigError, match=r'make another one.*precision="fp32"'):
        Trainer(small_clip(), teacher, Recipe())
    assert Trainer(small_clip(), teacher, recipe).teacher is teacher


def test_nothing_is_consumed_where_nothing_is_copied():
    unet, vae = small_unet(), small_vae()
    trainer = Trainer(small_clip(), _teacher(unet, vae), Recipe())
    trainer.accumulate(images(2))
    assert trainer.teacher.denoiser is unet and trainer.teacher.vae is vae
    assert not any(tensor.is_meta for part in (unet, vae) for tensor in part.parameters())


def test_two_in_memory_are_logged_with_what_they_take(caplog):
    caplog.set_level(logging.INFO, "diva_rs")
    for consume in (False, True):
        caplog.clear()
        Trainer(small_clip(), _teacher(small_unet(), small_vae(), consume), Recipe(precision="bf16"))
        said = [line for line in caplog.messages if "in memory twice, as given (0.0 GiB)" in line]
        assert len(said) == (not consume) and all("Teacher(..., consume=True)" in line for line in said)


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_what_a_trainer_loads_from_files_is_kept_once(tmp_path, backend):
    small_unet().save_pretrained(tmp_path / "unet")
    small_vae().save_pretrained(tmp_path / "vae")
    scheduler().save_pretrained(tmp_path / "scheduler")
    recipe = Recipe(precision="bf16", text="none", backend=backend)
    teacher = Trainer(small_clip(), tmp_path, recipe).teacher
    assert teacher.dtype == torch.bfloat16 and teacher.given is teacher.denoiser
    teacher = Teacher(tmp_path, consume=True)
    files = [weakref.ref(tensor.untyped_storage()) for tensor in teacher.given.parameters()]
    trainer = Trainer(small_clip(), teacher, recipe)
    gc.collect()
    assert trainer.teacher is teacher and not any(storage() for storage in files)
