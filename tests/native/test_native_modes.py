"""The native doors called directly, in the modes that a caller may have set: no crash, no wrong number."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from builders.small import images, small_clip, small_teacher
from diva_rs import FeedbackLoss, Recipe, Trainer
from diva_rs.errors import ConfigError, DivaError, ShapeError

pytestmark = pytest.mark.hostile


def trained(mode, **fields) -> tuple:
    """Loss and one weight after a direct call of the step in `mode`."""
    trainer = Trainer(small_clip(), small_teacher(), Recipe(lr=1e-2, **fields))
    batch = trainer.step_modules.batch(images(2), None, 0, None, 0)
    with mode():
        losses, _ = trainer.step_modules.step.train(
            trainer.step_modules.reader.native,
            batch,
            trainer._stages.optimizer,
            update=(None, [1.0, 1.0], None),
        )
    return losses["loss"], trainer.clip.visual.conv1.weight.detach()


MODES = {
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize(
    "fields", [{}, {"gradient_checkpointing": True, "anchor": 0.1}], ids=["plain", "more"]
)
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_the_step_sets_its_own_modes(mode, fields, backend):
    if backend == "torch":
        fields = {**fields, "gradient_checkpointing": False}
    loss, weight = trained(mode, backend=backend, **fields)
    expected_loss, expected = trained(torch.enable_grad, backend=backend, **fields)
    assert torch.equal(loss, expected_loss) and torch.equal(weight, expected)
    assert not loss.is_inference() and not loss.requires_grad


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_the_callers_modes_are_as_they_were(mode):
    def modes():
        return torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")

    trainer = Trainer(small_clip(), small_teacher(), Recipe(anchor=0.1))
    with mode():
        before = modes()
        trainer.step(images(2))
        inputs = trainer.step_modules.inputs(images(2), None, 0, None, 0)
        with pytest.raises(DivaError):
            trainer.step_modules.step.at_tokens(torch.rand(3, 17, 32), inputs.images, inputs.targets)
        assert modes() == before


def test_images_made_in_inference_mode():
    trainer, expected = (Trainer(small_clip(), small_teacher()) for _ in range(2))
    with torch.inference_mode():
        batch = {"images": images(2) + 0, "ids": [1, 2]}
    ready = {"pixel_values": torch.zeros(2, 3, 32, 32), "latents": torch.ones(2, 4, 8, 8)}
    with torch.inference_mode():
        inferred = {name: value + 0 for name, value in ready.items()}
    assert torch.equal(trainer.step(batch), expected.step({"images": images(2), "ids": [1, 2]}))
    assert torch.equal(trainer.step(inferred), expected.step(ready))
    with torch.inference_mode():
        assert torch.equal(trainer.step(batch), expected.step({"images": images(2), "ids": [1, 2]}))


def test_tokens_made_in_inference_mode_are_an_error():
    modules = Trainer(small_clip(), small_teacher(), Recipe(anchor=0.1)).step_modules
    inputs = modules.inputs(images(2), None, 0, None, 0)
    with torch.inference_mode():
        tokens = modules.tokens(inputs.images)
        with pytest.raises(DivaError, match="inference tensor"):
            modules.step.at_tokens(tokens, inputs.images, inputs.targets)


def test_feedback_loss_in_inference_mode():
    feedback = FeedbackLoss(small_clip(), small_teacher())
    expected = feedback(images(2), ids=[1, 2]).detach()
    with torch.no_grad():
        assert torch.equal(feedback(images(2), ids=[1, 2]), expected)


def test_a_refused_batch_leaves_what_was_accumulated():
    trainer = Trainer(small_clip(), small_teacher(), Recipe(image_size=15))
    latents = {"images": images(2), "latents": torch.ones(2, 4, 8, 8), "ids": [1, 2]}
    trainer.accumulate(latents)
    gradient = trainer.clip.visual.conv1.weight.grad.clone()
    with pytest.raises(ShapeError, match="multiples of 2"):
        trainer.accumulate(images(2))
    assert trainer.pending == 2 and torch.equal(trainer.clip.visual.conv1.weight.grad, gradient)
    trainer.apply()


def test_native_backend_needs_a_native_vae():
    teacher = small_teacher()
    teacher.vae.enable_tiling()
    trainer = Trainer(small_clip(), teacher, Recipe(backend="native"))
    with pytest.raises(ConfigError, match=r'backend="native": the VAE.*tiling.*backend="auto"'):
        trainer.step(images(2))
    trainer.step({"images": images(2), "latents": torch.ones(2, 4, 8, 8)})


def test_a_teacher_of_pixels_has_no_posterior():
    from builders.small import scheduler, small_unet
    from diva_rs import Teacher

    teacher = Teacher(small_unet(channels=3), scheduler=scheduler(), text_condition=torch.zeros(1, 8, 24))
    with pytest.raises(ConfigError, match=r"works on pixels.*latent='mean'"):
        Trainer(small_clip(), teacher, Recipe(latent="sample")).step(images(2))


class _Refusal(TorchDispatchMode):
    """Raises at one operation."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ == self.name:
            raise LookupError(f"no {self.name} here")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("operation", ["native_layer_norm", "native_layer_norm_backward"])
def test_an_exception_of_pythons_within_a_native_call_is_raised_as_it_is(operation):
    trainer = Trainer(small_clip(), small_teacher(), Recipe())
    with pytest.raises((LookupError, DivaError), match=f"no {operation} here") as raised, _Refusal(operation):
        trainer.accumulate(images(2))
    # Autograd's engine carries the text alone from a backward pass.
    assert raised.type is LookupError or operation.endswith("backward")
    trainer.accumulate(images(2))
