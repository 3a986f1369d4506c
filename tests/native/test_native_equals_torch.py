"""Twenty training steps on native networks and through the Python modules: the same run."""

import gc

import psutil
import pytest
import torch

from builders.small import images, small_clip, small_teacher, worst
from diva_rs import Recipe, Trainer
from diva_rs.errors import ConfigError

pytestmark = pytest.mark.invariant

STEPS = 20
RECIPES = {
    "adamw": {"optimizer": "adamw", "lr": 1e-3, "anchor": 0.05, "micro_batch": 2},
    "checkpointing": {
        "optimizer": "adamw",
        "lr": 1e-3,
        "gradient_checkpointing": True,
        "denoiser_checkpointing": True,
        "projector_warmup": 2,
    },
    "sgd": {"lr": 1e-2, "momentum": 0.9, "text": "concat", "condition": "all"},
    "text-behind": {
        "lr": 1e-2,
        "text": "concat",
        "choose": 3,
        "micro_batch": 3,
        "draws": 3,
        "denoiser_batch": 6,
        "denoiser_checkpointing": True,
    },
}


def run(backend: str, dtype: torch.dtype, fields: dict) -> tuple[list[float], Trainer]:
    precision = {torch.float64: "fp64", torch.float32: "fp32"}[dtype]
    recipe = Recipe(backend=backend, precision=precision, steps=STEPS, warmup=2, **fields)
    trainer = Trainer(small_clip(dtype), small_teacher(dtype), recipe)
    return [float(trainer.step(images(4, seed=step, dtype=dtype))) for step in range(STEPS)], trainer


@pytest.mark.parametrize("fields", RECIPES.values(), ids=RECIPES)
def test_all_weights_agree_in_float64(fields):
    native_losses, native = run("native", torch.float64, fields)
    torch_losses, python = run("torch", torch.float64, fields)
    assert set(native.backend.values()) == {"native"}
    assert all(why.startswith("torch") for why in python.backend.values())
    ours = {name: value.detach() for name, value in native.parameters().items()}
    theirs = {name: value.detach() for name, value in python.parameters().items()}
    moved = worst(ours, {name: value.detach() for name, value in fresh(torch.float64, fields).items()})
    assert moved > 1e-3, "nothing was trained"
    assert worst(ours, theirs) <= 1e-9
    assert native_losses == pytest.approx(torch_losses, rel=1e-9)


@pytest.mark.parametrize("fields", RECIPES.values(), ids=RECIPES)
def test_loss_curves_agree_in_float32(fields):
    native_losses, _ = run("native", torch.float32, fields)
    torch_losses, _ = run("torch", torch.float32, fields)
    assert native_losses == pytest.approx(torch_losses, rel=1e-4)


def test_native_refuses_what_it_does_not_compute_and_auto_says_why():
    teacher = small_teacher()
    teacher.unet.mid_block.register_forward_hook(lambda *_: None)
    with pytest.raises(ConfigError, match=r'backend="native".*hook.*backend="auto"'):
        Trainer(small_clip(), teacher, Recipe(backend="native"))
    trainer = Trainer(small_clip(), teacher, Recipe(backend="auto"))
    assert trainer.backend["tower"] == "native"
    assert "hook" in trainer.backend["denoiser"]
    trainer.step(images(2))


def test_a_step_keeps_no_memory():
    trainer = Trainer(small_clip(), small_teacher(), Recipe(optimizer="adamw", backend="native"))
    batch, process = images(4), psutil.Process()
    for _ in range(50):
        trainer.step(batch)
    assert set(trainer.backend.values()) == {"native"}  # one call, from images to weights
    gc.collect()
    before = process.memory_info().rss
    for _ in range(200):
        trainer.step(batch)
    gc.collect()
    # One batch's activations are some megabytes: a leak of them would show two hundredfold.
    assert process.memory_info().rss - before < 8 * 2**20


def fresh(dtype: torch.dtype, fields: dict) -> dict:
    recipe = Recipe(precision="fp64" if dtype == torch.float64 else "fp32", **fields)
    return Trainer(small_clip(dtype), small_teacher(dtype), recipe).parameters()
