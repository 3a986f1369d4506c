"""Flux and SD3 in a training step: frozen in either slot or trained, natively as through PyTorch."""

import pytest
import torch
from torch import Tensor

from builders.changes import error
from builders.clips import clip_variants
from builders.dits import through
from builders.flows import POOLED, TOKENS, flow_scheduler, tiny_flux, tiny_sd3
from diva_rs import Recipe, Teacher, Trainer
from diva_rs.native import native_denoiser

pytestmark = pytest.mark.parity

MODELS = {"flux": tiny_flux, "sd3": tiny_sd3}
WIDTHS = {"both": TOKENS + POOLED, "tokens": TOKENS, "pooled": POOLED}


def teacher_of(kind: str, slot: str = "both") -> Teacher:
    """The slot that the condition leaves holds text of random numbers."""
    generator = torch.Generator().manual_seed(7)
    text = torch.randn(1, 4, TOKENS, generator=generator).double() if slot == "pooled" else None
    pooled = torch.randn(1, POOLED, generator=generator).double() if slot == "tokens" else None
    model = MODELS[kind]().double()
    return Teacher(model, None, flow_scheduler(), text, slot=slot, pooled_projections=pooled)


@pytest.mark.parametrize("slot", WIDTHS)
@pytest.mark.parametrize("kind", MODELS)
def test_every_slot_with_and_without_checkpointing(kind: str, slot: str) -> None:
    teacher = teacher_of(kind, slot)
    generator = torch.Generator().manual_seed(5)
    noisy = torch.randn(2, 16, 8, 6, generator=generator).double()
    condition = torch.randn(2, 3, WIDTHS[slot], generator=generator).double()
    args = (noisy, torch.tensor([12.5, 731.0]), condition)
    expected = through(teacher.denoise, *args)
    weights = torch.randn(noisy.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    native = native_denoiser(teacher)
    assert native.condition_width == teacher.condition_width
    assert native.slots == list(teacher.slots.names)
    for found in (through(native.predict, *args), native_denoiser(teacher, True).gradient(*args, weights)):
        for ours, theirs in zip(found, expected, strict=True):
            assert error(ours, theirs) <= 1e-10


def trainer_of(kind: str, train: tuple[str, ...], precision: str = "fp64", **fields: object) -> Trainer:
    torch.manual_seed(0)
    dtype = torch.float64 if precision == "fp64" else torch.float32
    clip, model = clip_variants()["open_clip-gelu"](dtype), MODELS[kind]().to(dtype)
    recipe = Recipe(
        **{
            "condition": "class",
            "text": "none",
            "projector": "mlp",
            "timesteps": "logit-normal",
            "draws": 2,
            "precision": precision,
            "stages": ({"train": train, "optimizer": "adamw"},),
            **fields,
        }
    )
    return Trainer(clip, Teacher(model, scheduler=flow_scheduler()), recipe)


def batch(dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {
        "pixel_values": torch.rand(3, 3, 32, 32).to(dtype),
        "latents": torch.randn(3, 16, 6, 6).to(dtype),
    }


def step(kind: str, train: tuple[str, ...], **fields: object) -> dict[str, Tensor]:
    """The loss and every gradient of one step."""
    trainer = trainer_of(kind, train, **fields)
    loss = trainer.accumulate(batch(), ids=[3, 4, 5])
    native = fields.get("backend") != "torch"
    assert (trainer.backend["denoiser"] == "native") == native
    found = {name: param.grad for name, param in trainer.parameters().items() if param.grad is not None}
    assert any(name.startswith("denoiser.") for name in found) == ("denoiser" in train)
    return {"loss": loss, **found}


@pytest.mark.parametrize(
    "fields", [{}, {"denoiser_checkpointing": True}, {"denoiser_batch": 1}, {"micro_batch": 2}], ids=str
)
@pytest.mark.parametrize("train", [("projector", "denoiser"), ("projector", "tower")], ids=str)
@pytest.mark.parametrize("kind", MODELS)
def test_a_step_is_that_of_the_torch_backend(kind: str, train: tuple[str, ...], fields: dict) -> None:
    expected = step(kind, train, backend="torch")
    found = step(kind, train, **fields)
    assert found.keys() == expected.keys()
    largest = max(float(value.norm()) for value in expected.values())
    for name, value in expected.items():
        assert float((found[name] - value).norm()) <= 1e-10 * max(float(value.norm()), 1e-3 * largest), name


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("kind", MODELS)
def test_gradients_that_stay_in_bf16_move_the_weights_to_the_same_bits(kind: str, optimizer: str) -> None:
    """A whole step keeps them until the update widens them; `accumulate` adds them up in float32."""
    stages = ({"train": ("projector", "denoiser"), "optimizer": optimizer, "lr": 0.1},)
    fields = {"precision": "bf16", "denoiser_checkpointing": True, "stages": stages, "grad_clip": 0.5}
    whole, parts = (trainer_of(kind, (), **fields) for _ in range(2))
    for seed in range(3):
        loss = whole.step(batch(torch.float32, seed))
        assert loss.equal(parts.accumulate(batch(torch.float32, seed)))
        grads = {name: param.grad for name, param in parts.parameters().items() if param.grad is not None}
        assert {grad.dtype for grad in grads.values()} == {torch.float32}
        assert whole.metrics["grad_norm"].equal(parts.apply().grad_norm)
        used = {name for name, param in whole.parameters().items() if name in grads and param.grad is None}
        assert used == {name for name, grad in grads.items() if "denoiser." in name and grad.ndim == 2}
        for name, value in whole.parameters().items():
            assert value.equal(parts.parameters()[name]), name


@pytest.mark.parametrize("fields", [{"denoiser_batch": 3}, {"micro_batch": 1}], ids=str)
def test_several_passes_add_bf16_gradients_in_float32(fields: dict) -> None:
    common = {"precision": "bf16", "denoiser_checkpointing": True}
    for given, rounded in (({}, True), (fields, False)):
        trainer = trainer_of("flux", ("projector", "denoiser"), **common, **given)
        trainer.accumulate(batch(torch.float32), ids=[3, 4, 5])
        blocks = {name: param for name, param in trainer.parameters().items() if "blocks.0.attn.to" in name}
        grads = [param.grad for param in blocks.values() if param.ndim == 2]
        assert len(grads) > 5
        assert {bool(grad.bfloat16().float().equal(grad)) for grad in grads} == {rounded}
