"""A step is one call into the native core: the same as its parts, and the same whoever runs the networks."""

import pytest
import torch

import diva_rs
from builders.small import images, small_clip, small_teacher, worst
from diva_rs import Recipe, Trainer

pytestmark = pytest.mark.invariant

STEPS = 3
RECIPES = {
    "official": {"vae_pixels": "official", "resize": "bilinear", "antialias": False},
    "sampled": {"latent": "sample", "pixels": "symmetric", "antialias": False},
    "micro-batches": {"micro_batch": 2, "anchor": 0.05, "optimizer": "adamw"},
    "warm-up": {"projector_warmup": 2, "condition": "all", "text": "concat", "draws": 3},
}


def trainer(fields: dict, **more) -> Trainer:
    recipe = Recipe(precision="fp64", lr=1e-2, steps=STEPS, warmup=1, **fields, **more)
    return Trainer(small_clip(torch.float64), small_teacher(torch.float64), recipe)


def batch(step: int) -> dict:
    return {"images": images(5, seed=step, dtype=torch.float64), "ids": list(range(5 * step, 5 * step + 5))}


def weights(trained: Trainer) -> dict:
    return {name: parameter.detach() for name, parameter in trained.parameters().items()}


def same(ours: Trainer, theirs: Trainer) -> bool:
    return all(torch.equal(value, weights(theirs)[name]) for name, value in weights(ours).items())


@pytest.mark.parametrize("fields", RECIPES.values(), ids=RECIPES)
def test_step_is_accumulate_and_apply_to_the_bit(fields):
    whole, parts = trainer(fields), trainer(fields)
    for step in range(STEPS):
        loss = whole.step(batch(step))
        assert torch.equal(loss, parts.accumulate(batch(step)))
        assert parts.pending == 5 and whole.pending == 0
        parts.apply()
        assert whole.metrics.keys() == parts.metrics.keys()
        assert torch.equal(whole.metrics["grad_norm"], parts.metrics["grad_norm"])
        assert whole.metrics["samples"] == parts.metrics["samples"] == 5
    assert same(whole, parts) and whole.steps_done == parts.steps_done == STEPS


def test_a_step_on_top_of_accumulated_batches():
    whole, parts = trainer({}), trainer({})
    for trained in (whole, parts):
        trained.accumulate(batch(0))
    whole.step(batch(1))
    parts.accumulate(batch(1))
    parts.apply()
    assert same(whole, parts) and whole.metrics["samples"] == 10


def test_post_train_updates_in_the_call_that_fills_the_batch():
    fields = {"precision": "fp64", "lr": 1e-2, "steps": STEPS, "batch": 8}
    clip, loader = small_clip(torch.float64), [batch(step) for step in range(2 * STEPS)]
    result = diva_rs.post_train(clip, small_teacher(torch.float64), loader, progress=False, **fields)
    parts = Trainer(small_clip(torch.float64), small_teacher(torch.float64), Recipe(**fields))
    for step in range(STEPS):
        for item in loader[2 * step : 2 * step + 2]:
            parts.accumulate(item)
        parts.apply()
    assert result.report["steps"] == STEPS and result.report["samples"] == 10 * STEPS
    trained = dict(clip.named_parameters())
    assert all(torch.equal(value, trained[name]) for name, value in parts.step_modules.parameters.items())


def test_only_the_vae_may_be_a_python_module():
    teacher = small_teacher(torch.float64)
    teacher.vae.encoder.conv_in.register_forward_hook(lambda *_: None)
    recipe = Recipe(precision="fp64", lr=1e-2, steps=STEPS, warmup=1)
    mixed = Trainer(small_clip(torch.float64), teacher, recipe)
    native = trainer({})
    for step in range(STEPS):
        mixed.step(batch(step)), native.step(batch(step))
    assert mixed.backend["denoiser"] == "native"
    assert mixed.backend["vae"] == "torch (conv_in has a forward hook)"
    assert worst(weights(mixed), weights(native)) <= 1e-10
