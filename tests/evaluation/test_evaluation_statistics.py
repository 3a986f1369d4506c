"""Intervals and tests of the evaluation, held against their formulas and scipy."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

from diva_rs.errors import ConfigError, ShapeError
from diva_rs.evaluation import (
    compare_outcomes,
    mcnemar_exact,
    paired_bootstrap,
    smallest_difference,
    wilson_interval,
)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("right,total", [(0, 15), (15, 15), (27, 135), (37_750, 50_000)])
def test_wilsons_interval_is_his_formula(right, total, confidence):
    z, share = NormalDist().inv_cdf((1 + confidence) / 2), right / total
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2)
    ends = [(centre - half) / (1 + z * z / total), (centre + half) / (1 + z * z / total)]
    assert wilson_interval(right, total, confidence) == pytest.approx(ends, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("gained,lost", [(0, 0), (1, 0), (9, 3), (40, 38), (2, 650)])
def test_mcnemars_exact_test_is_two_binomial_tails(gained, lost):
    flips = gained + lost
    tail = sum(math.comb(flips, k) for k in range(min(gained, lost) + 1)) / 2**flips
    assert mcnemar_exact(gained, lost) == pytest.approx(min(1, 2 * tail), rel=1e-10)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("flips", [0, 1, 5, 6, 7, 12, 60, 315])
def test_the_smallest_difference_is_the_first_that_the_test_shows(flips, confidence):
    difference = smallest_difference(flips, confidence)
    total = max(flips, difference)  # too few flips: how many in one direction are needed
    gained = (total + difference) // 2
    assert mcnemar_exact(gained, total - gained) <= 1 - confidence + 1e-12
    assert mcnemar_exact(gained - 1, total - gained + (difference <= flips)) > 1 - confidence


def outcomes(both, gained, lost, neither):
    before = [True] * both + [False] * gained + [True] * lost + [False] * neither
    after = [True] * (both + gained) + [False] * (lost + neither)
    order = np.random.default_rng(0).permutation(len(before))
    return np.array(before)[order].tolist(), np.array(after)[order].tolist()


@pytest.mark.parametrize("counts", [(20, 12, 3, 100), (0, 30, 30, 75), (100, 1, 0, 34)])
def test_the_bootstrap_is_scipys_up_to_resampling(counts):
    before, after = outcomes(*counts)

    def difference(x, y, axis):
        return np.mean(y, axis=axis) - np.mean(x, axis=axis)

    theirs = stats.bootstrap(
        (np.array(before, float), np.array(after, float)),
        difference,
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    ours = paired_bootstrap(before, after, resamples=20_000)
    # Differences come in steps of one pair; two sets of resamples may settle on neighbouring steps.
    assert ours == pytest.approx((theirs.low, theirs.high), abs=1.0001 / len(before))


def test_the_bootstrap_is_seeded():
    before, after = outcomes(20, 12, 3, 100)
    assert paired_bootstrap(before, after, seed=3) == paired_bootstrap(before, after, seed=3)
    seen = {paired_bootstrap(before, after, resamples=50, seed=seed) for seed in range(20)}
    assert len(seen) > 1


def test_a_comparison_names_which_items_flipped():
    before, after = outcomes(20, 12, 3, 100)
    change = compare_outcomes(before, after, "pairs")
    assert [before[i] for i in change.gained] == [False] * 12 and all(after[i] for i in change.gained)
    assert [after[i] for i in change.lost] == [False] * 3 and all(before[i] for i in change.lost)
    assert change.before == pytest.approx(100 * 23 / 135) and change.after == pytest.approx(100 * 32 / 135)
    assert change.difference == pytest.approx(change.after - change.before)
    assert change.interval[0] < change.difference < change.interval[1]
    assert change.p_value == mcnemar_exact(12, 3)
    assert set(change.to_dict()) == set(change.__dataclass_fields__)


@pytest.mark.parametrize(
    "call,error,words",
    [
        (lambda: wilson_interval(1, 2, 1.0), ConfigError, "confidence=1.0"),
        (lambda: paired_bootstrap([True], [True, False]), ShapeError, "1 outcomes before and 2 after"),
        (lambda: paired_bootstrap([], []), ShapeError, "0 outcomes"),
        (lambda: paired_bootstrap([True], [True], confidence=0.0), ConfigError, "confidence=0.0"),
    ],
)
def test_bad_numbers_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
