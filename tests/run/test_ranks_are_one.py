"""Several ranks are one: same weights and losses at the same global batch, however the samples are split."""

import pytest

from builders.run_ranks import Runs
from builders.small import worst

RUNS = ("fifty", "from_folder", "unequal", "captions", "own_batches", "low_rank")
RUNS += ("genhancer", "un2clip", "dcr")
LOSSES = ("loss", "denoising", "contrast", "anchor", "captions", "keep", "grad_norm", "lr")
pytestmark = [pytest.mark.invariant, pytest.mark.timeout(900)]  # a busy machine is no failure


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    alone = [f"{name}-1" for name in ("straight", *RUNS)]
    return Runs(tmp_path_factory.mktemp("ranks"), *alone, *(f"{name}-2" for name in RUNS), "straight-3")


def apart(one, other):
    """The largest relative difference of two runs' logged numbers."""
    assert [row["step"] for row in one] == [row["step"] for row in other]
    pairs = zip(one, other, strict=True)
    return max(
        abs(a[name] - b[name]) / max(abs(b[name]), 1e-3) for a, b in pairs for name in LOSSES if name in b
    )


@pytest.mark.parametrize("run", ["straight-3", *(f"{name}-2" for name in RUNS)])
def test_ranks_are_one_rank_with_the_same_global_batch(runs, run):
    [alone] = runs.of(run.rsplit("-", 1)[0] + "-1")
    assert alone["history"][0]["loss"] != alone["history"][-1]["loss"]
    for rank in runs.of(run):
        assert worst(rank["weights"], alone["weights"]) <= 1e-10
        assert apart(rank["history"], alone["history"]) <= 1e-10


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
