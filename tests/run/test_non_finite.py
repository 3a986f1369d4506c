"""Numbers that go wrong: skipped updates, and jumps of the loss."""

import json
import logging

import pytest
import torch

from builders import runs
from builders.small import images, small_clip, small_teacher
from diva_rs import DivaError, Recipe, Trainer
from diva_rs.data.batches import Batch
from diva_rs.run.non_finite import NonFiniteMonitor

NAN = float("nan")


def torch_teacher(spoil=None, dtype=torch.float32):
    """A teacher that runs through its Python module, whose predictions `spoil` may change."""
    teacher = small_teacher(dtype)
    if spoil is not None:
        teacher.unet.register_forward_hook(spoil)
    return teacher


class Spoil:
    """Multiplies the predictions of the given calls."""

    def __init__(self, calls, factor):
        self.calls, self.factor, self.count = set(calls), factor, 0

    def __call__(self, module, inputs, output):
        self.count += 1
        if self.count in self.calls:
            return (output[0] * self.factor, *output[1:])
        return None


def train(teacher, loader, **given):
    return runs.train(teacher, loader, **{"draws": 1, "lr": 1e-2, **given})


def weights(result):
    return {**result.clip.state_dict(), **result.projector.state_dict()}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("factor", [NAN, float("inf")])
def test_an_update_that_is_not_finite_is_skipped_counted_and_named(optimizer, factor, caplog, tmp_path):
    loader = [{"images": images(2, seed=n), "ids": [f"{n}a", f"{n}b"]} for n in range(4)]
    spoilt = torch_teacher(Spoil([3], factor))
    with caplog.at_level(logging.WARNING, "diva_rs"):
        result = train(spoilt, loader, optimizer=optimizer, schedule="constant", output_dir=tmp_path)
    assert [row["skipped"] for row in result.history] == [0, 0, 1, 1]
    assert result.report["skipped"] == 1
    assert "step 3 was skipped: its loss is not finite. Samples: 2a, 2b\n" in caplog.text
    assert all(value.isfinite().all() for value in weights(result).values())
    before = train(torch_teacher(Spoil([], 1.0)), loader[:2], optimizer=optimizer, schedule="constant")
    after = train(torch_teacher(Spoil([3], factor)), loader[:3], optimizer=optimizer, schedule="constant")
    for name, value in weights(before).items():
        assert torch.equal(weights(after)[name], value), name


def test_a_run_ends_after_too_many_in_a_row(tmp_path):
    loader = [images(2, seed=n) for n in range(9)]
    spoilt = torch_teacher(Spoil(range(3, 99), NAN))
    with pytest.raises(DivaError, match=r"3 updates in a row .* at step 5 \(samples: 8, 9 of the pass"):
        train(spoilt, loader, max_skipped=2, output_dir=tmp_path)
    scattered = torch_teacher(Spoil(range(1, 99, 2), NAN))
    assert train(scattered, loader, max_skipped=1).report["skipped"] == 5


def test_statistics_wait_for_the_log():
    """Between two logs nothing is read from the device."""
    numbers = NonFiniteMonitor(most=1)
    for step in range(1, 4):
        numbers.batch(Batch(ids=[step]), 0, torch.tensor(NAN))
        numbers.step(step, torch.tensor(NAN), torch.tensor(NAN))
        assert numbers.skipped == 0
    numbers.read()
    assert numbers.skipped == 3
    with pytest.raises(DivaError, match=r"3 updates in a row .* at step 3 \(samples: 3\)"):
        numbers.check()


def test_a_jump_of_the_loss_is_named(caplog):
    numbers = NonFiniteMonitor(most=1)
    generator = torch.Generator().manual_seed(0)
    with caplog.at_level(logging.WARNING, "diva_rs"):
        for step in range(1, 200):
            value = 1 + 0.1 * torch.randn((), generator=generator)
            numbers.batch(Batch(ids=torch.tensor([step, 1000 + step])), 0, value)
            numbers.batch(Batch(ids=["x"]), 2, value * (7 if step == 150 else 1))
            numbers.step(step, value * (3 if step == 150 else 1), torch.tensor(1.0))
            numbers.read()
    [record] = caplog.records
    assert "the loss jumped to" in record.getMessage() and "at step 150" in record.getMessage()
    assert record.getMessage().endswith("Samples: x")


def test_a_loss_that_hardly_varies_does_not_jump(caplog):
    numbers = NonFiniteMonitor(most=1)
    with caplog.at_level(logging.WARNING, "diva_rs"):
        for step in range(1, 60):
            value = torch.tensor(1.0 + 0.05 * (step == 50))
            numbers.batch(Batch(), 0, value)
            numbers.step(step, value, torch.tensor(1.0))
        numbers.read()
    assert not caplog.records


class InfiniteLoss(torch.autograd.Function):
    """Infinite, with a gradient that is not."""

    @staticmethod
    def forward(ctx, value):
        return value * float("inf")

    @staticmethod
    def backward(ctx, gradient):
        return torch.zeros_like(gradient)


@pytest.mark.parametrize("spoilt", [1, 2])
def test_a_loss_that_is_not_finite_skips_the_update_whatever_its_gradient(spoilt):
    """In either of the two batches of a step; in one call and in two."""
    for one_call in (True, False):
        calls = []

        def spoil(module, inputs, output, calls=calls):
            calls.append(1)
            return (InfiniteLoss.apply(output[0]),) if len(calls) == spoilt else None

        trainer = Trainer(small_clip(), torch_teacher(spoil), Recipe(draws=1, lr=1.0, anchor=0.1))
        before = {name: value.clone() for name, value in trainer.parameters().items()}
        trainer.accumulate(images(2))
        if one_call:
            trainer.train(images(2, seed=5), until=4)
        else:
            trainer.accumulate(images(2, seed=5))
            trainer.apply()
        assert not trainer.metrics["loss"].isfinite() and trainer.metrics["grad_norm"].isfinite()
        for name, value in trainer.parameters().items():
            assert torch.equal(value, before[name]), name


def test_the_count_continues_where_a_run_resumes(tmp_path):
    """Read for a checkpoint too, though no log is due."""
    loader = [images(2, seed=n) for n in range(6)]
    given = {"schedule": "constant", "output_dir": tmp_path, "log_every": 4, "checkpoint_every": 3}
    train(torch_teacher(Spoil([2], NAN)), loader, steps=3, **given)
    folder = tmp_path / "checkpoints" / "step-00000003"
    assert json.loads((folder / "state.json").read_text())["run"]["skipped"] == 1
    result = train(torch_teacher(Spoil([1], NAN)), loader, steps=6, resume="force", **given)
    assert result.report["skipped"] == 2
