"""Half precision, and a teacher on another device than CLIP."""

import warnings

import pytest
import torch

from builders.small import images, small_clip, small_teacher, small_unet
from diva_rs import Recipe, Teacher, Trainer
from diva_rs.errors import ConfigError
from diva_rs.native import NotNative, native_denoiser, native_encoder
from diva_rs.step import modules

pytestmark = pytest.mark.hostile


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_bf16_on_a_cpu_without_it_says_so_and_trains(monkeypatch, backend):
    monkeypatch.setattr(modules, "computes_bf16", lambda device: False)
    with pytest.warns(UserWarning, match=r'precision="bf16": this cpu device has no bfloat16.*fp32'):
        trainer = Trainer(small_clip(), small_teacher(), Recipe(precision="bf16", backend=backend))
    loss = trainer.step(images(2))
    assert loss.dtype == torch.float32 and bool(torch.isfinite(loss))
    assert all(parameter.grad.dtype == torch.float32 for parameter in trainer.parameters().values())


def test_no_word_where_it_is_supported_or_not_asked_for(monkeypatch):
    monkeypatch.setattr(modules, "computes_bf16", lambda device: True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        Trainer(small_clip(), small_teacher(), Recipe(precision="bf16"))
        monkeypatch.setattr(modules, "computes_bf16", lambda device: False)
        Trainer(small_clip(), small_teacher(), Recipe(precision="fp32"))


def test_float16_weights_of_clip_are_refused_with_what_to_do():
    with pytest.raises(ConfigError, match=r"torch.float16.*call clip.float\(\)"):
        Trainer(small_clip(torch.float16), small_teacher(), Recipe())


def test_a_float16_teacher_is_converted_for_the_run_and_never_runs_natively_in_float16():
    teacher = small_teacher(torch.float16)
    with pytest.raises(NotNative, match="float16"):
        native_denoiser(teacher)
    trainer = Trainer(small_clip(), teacher, Recipe(backend="native"))
    assert trainer.teacher.dtype == torch.float32 and teacher.dtype == torch.float16
    assert bool(torch.isfinite(trainer.step(images(2))))


def test_a_teacher_elsewhere_gets_copies_and_answers_to_where_it_was_asked_from():
    """CLIP on meta, the teacher on meta, and the caller's batch on the CPU: everything is carried over."""
    teacher = Teacher(
        small_unet(), vae=small_teacher().vae, scheduler=small_teacher()._parts.need("scheduler"),
        text_condition=torch.zeros(1, 8, 24), device="meta",
    )  # fmt: skip
    assert teacher.device.type == "meta" and teacher.vae is not None
    trainer = Trainer(small_clip().to("meta"), teacher, Recipe(backend="native", latent="sample"))
    assert trainer.step(images(2)).is_meta
    # Seen from the CPU the way there works; meta, which holds no values, cannot go the way back.
    for run in (
        lambda: native_denoiser(teacher).predict(
            torch.rand(2, 4, 8, 8), torch.tensor([1, 2]), torch.rand(2, 5, 24, requires_grad=True)
        ),
        lambda: native_encoder(teacher).encode(torch.rand(2, 3, 16, 16)),
    ):
        with pytest.raises(Exception, match="Cannot copy out of meta tensor"):
            run()


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_teacher_in_another_dtype_than_clip_is_the_same_as_one_that_was_cast(backend):
    """The copies change device and dtype in one place: here the dtype is seen to come back."""
    clip, teacher = small_clip(), small_teacher()
    trainer = Trainer(clip, teacher, Recipe(precision="bf16", backend=backend, lr=1e-2))
    assert trainer.teacher.dtype == torch.bfloat16 and teacher.dtype == torch.float32
    inputs = trainer.step_modules.inputs(images(2), None, 0, None, 0)
    tokens = trainer.step_modules.tokens(inputs.images).detach().float()
    step = trainer.step_modules.step
    losses, d_tokens, d_bridge, _ = step.at_tokens(tokens, inputs.images, inputs.targets)
    gradients = (d_tokens, *d_bridge)
    assert {losses["loss"].dtype, *(gradient.dtype for gradient in gradients)} == {torch.float32}
    exact = Trainer(small_clip(), small_teacher(), Recipe(precision="fp32", backend=backend)).step_modules
    reference, *_ = exact.step.at_tokens(tokens, inputs.images, inputs.targets)
    loss, expected = float(losses["loss"]), float(reference["loss"])
    assert abs(loss - expected) <= 2e-2 * expected
