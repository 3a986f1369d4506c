"""Runs that must agree: same seed, micro-batches, accumulation, explicit draws."""

import pytest
import torch

import diva_rs
from builders.small import gradients, images, small_clip, small_teacher, worst
from diva_rs import Recipe, Trainer

pytestmark = pytest.mark.invariant

FP64 = {"precision": "fp64", "draws": 3, "density": 0.4, "text": "mean"}


def trainer64(**fields):
    recipe = Recipe(**{**FP64, **fields})
    return Trainer(small_clip(torch.float64), small_teacher(torch.float64), recipe)


def weights(clip):
    return {name: value.clone() for name, value in clip.state_dict().items()}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_same_seed_gives_the_same_bits(optimizer):
    def run():
        clip = small_clip()
        loader = [images(4, seed=n) for n in range(3)]
        fields = {"optimizer": optimizer, "lr": 1e-2, "steps": 6}
        result = diva_rs.post_train(clip, small_teacher(), loader, progress=False, **fields)
        return weights(clip), result.projector.state_dict()

    (first, first_projector), (second, second_projector) = run(), run()
    start = weights(small_clip())
    assert any(not torch.equal(first[name], start[name]) for name in start)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    for name, value in first_projector.items():
        assert torch.equal(value, second_projector[name]), name


def test_another_seed_gives_other_draws():
    losses = [float(trainer64(seed=seed).accumulate(images(4, dtype=torch.float64))) for seed in (0, 1)]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 4, 8])
def test_micro_batches_do_not_change_the_gradient(micro_batch):
    batch = images(8, dtype=torch.float64)
    whole, parts = trainer64(), trainer64(micro_batch=micro_batch)
    a, b = whole.accumulate(batch), parts.accumulate(batch)
    assert abs(float(a - b)) <= 1e-12 * abs(float(a))
    assert worst(gradients(parts), gradients(whole)) <= 1e-10


@pytest.mark.parametrize("split", [(4, 4), (2, 2, 2, 2), (1, 7), (3, 3, 2)])
def test_accumulated_batches_are_one_larger_batch(split):
    batch = images(8, dtype=torch.float64)
    whole, parts = trainer64(anchor=0.1), trainer64(anchor=0.1)
    whole.accumulate(batch, ids=range(8))
    start = 0
    for length in split:
        parts.accumulate(batch[start : start + length], ids=range(start, start + length))
        start += length
    assert worst(gradients(parts), gradients(whole)) <= 1e-10
    assert abs(float(whole.metrics["loss"] - parts.metrics["loss"])) <= 1e-12
    whole.apply()
    parts.apply()
    after = weights(whole.clip)
    assert worst(weights(parts.clip), after) <= 1e-10


def test_the_order_of_the_samples_does_not_matter():
    batch, order = images(6, dtype=torch.float64), torch.tensor([3, 0, 5, 1, 4, 2])
    straight, shuffled = trainer64(), trainer64()
    straight.accumulate(batch, ids=range(6))
    shuffled.accumulate(batch[order], ids=order.tolist())
    assert worst(gradients(shuffled), gradients(straight)) <= 1e-10


def test_explicit_draws_replace_the_keyed_ones():
    batch = images(4, dtype=torch.float64)
    keyed, explicit = trainer64(seed=5), trainer64(seed=6)
    explicit.projector.load_state_dict(keyed.projector.state_dict())  # its start is seeded too
    draws = diva_rs.draw(seed=5, ids=range(4), draws=3, latent_shape=(4, 8, 8), patches=16, choose=6)
    keyed.accumulate(batch)
    explicit.accumulate(batch, draws=draws)
    assert worst(gradients(explicit), gradients(keyed)) == 0.0
