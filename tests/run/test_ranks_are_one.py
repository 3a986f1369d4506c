"""Several ranks are one: same weights and losses at the same global batch, however the samples are split.

The logged numbers of 50 steps, and the norms of the weights after them, are also held to ``one_rank.json``,
which a run of one rank writes anew: `PYTHONPATH=tests python tests/run/test_ranks_are_one.py FOLDER`.
"""

import json
import sys
from pathlib import Path

import pytest

from builders.run_ranks import Runs
from builders.small import worst

LOSSES = ("loss", "denoising", "anchor", "captions", "keep", "grad_norm", "lr")
pytestmark = [pytest.mark.invariant, pytest.mark.timeout(900)]  # a busy machine is no failure
COMMITTED = Path(__file__).with_name("one_rank.json")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    names = ("straight", "fifty", "from_folder", "unequal", "captions", "own_batches")
    alone = [f"{name}-1" for name in names]
    return Runs(tmp_path_factory.mktemp("ranks"), *alone, *(f"{name}-2" for name in names[1:]), "straight-3")


def apart(one, other):
    """The largest relative difference of two runs' logged numbers."""
    assert [row["step"] for row in one] == [row["step"] for row in other]
    pairs = zip(one, other, strict=True)
    return max(
        abs(a[name] - b[name]) / max(abs(b[name]), 1e-3) for a, b in pairs for name in LOSSES if name in b
    )


def trajectory(run):
    """Of a run what is committed: the logged numbers of every step, and the norm of each trained tensor."""
    rows = [{name: row[name] for name in ("step", *LOSSES) if name in row} for row in run["history"]]
    return {"history": rows, "norms": {name: float(value.norm()) for name, value in run["weights"].items()}}


def without_key_biases(weights):
    """The weights, attention's key biases set to zero.

    A softmax does not see them, so that their gradient is zero in exact arithmetic. In float32 it is rounding
    noise above AdamW's eps, which moves them by about the learning rate in whatever direction.
    """
    seen = {name: value.clone() for name, value in weights.items()}
    for name, value in seen.items():
        if name.endswith("attn.in_proj_bias"):
            value.chunk(3)[1].zero_()
    return seen


@pytest.mark.parametrize(
    "run", ["fifty-2", "straight-3", "from_folder-2", "unequal-2", "captions-2", "own_batches-2"]
)
def test_ranks_are_one_rank_with_the_same_global_batch(runs, run):
    [alone] = runs.of(run.rsplit("-", 1)[0] + "-1")
    assert alone["history"][0]["loss"] != alone["history"][-1]["loss"]
    for rank in runs.of(run):
        assert worst(rank["weights"], alone["weights"]) <= 1e-10
        assert apart(rank["history"], alone["history"]) <= 1e-10


@pytest.mark.parametrize("run", ["fifty-1", "fifty-2"])
def test_fifty_steps_are_those_committed(runs, run):
    committed = json.loads(COMMITTED.read_text())
    assert committed["history"][-1]["step"] == 50
    for rank in runs.of(run):
        found = trajectory(rank)
        assert apart(found["history"], committed["history"]) <= 1e-10
        assert found["norms"] == pytest.approx(committed["norms"], rel=1e-10)


@pytest.mark.slow
def test_in_float32_they_drift_by_rounding_alone(tmp_path):
    runs = Runs(tmp_path, "single-1", "single-2")
    [alone] = runs.of("single-1")
    for rank in runs.of("single-2"):
        assert worst(without_key_biases(rank["weights"]), without_key_biases(alone["weights"])) <= 1e-5
        assert apart(rank["history"], alone["history"]) <= 1e-4


def test_every_rank_ends_with_the_same_bits(runs):
    for run in ("straight-3", "fifty-2"):
        first, *others = runs.of(run)
        for other in others:
            assert all(value.equal(other["weights"][name]) for name, value in first["weights"].items())
            assert other["history"] == first["history"]


def test_no_rank_decodes_the_images_of_another(runs):
    [alone] = runs.of("from_folder-1")
    first, second = (rank["decoded"] for rank in runs.of("from_folder-2"))
    assert (len(first), len(second)) == (6, 5)
    assert sorted(first + second) == sorted(alone["decoded"])


def test_a_step_counts_the_samples_of_all_ranks(runs):
    for rank in runs.of("from_folder-2"):
        assert [row["samples"] for row in rank["history"]] == [8.0, 3.0]
        assert (rank["report"]["samples"], rank["report"]["ranks"]) == (11, 2)


if __name__ == "__main__":
    [one] = Runs(Path(sys.argv[1]), "fifty-1").of("fifty-1")
    COMMITTED.write_text(json.dumps(trajectory(one), indent=1) + "\n")
