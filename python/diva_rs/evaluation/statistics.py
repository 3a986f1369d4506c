"""How sure a score is: intervals for a share, and the comparison of two models on the same items.

MMVP-VLM has 135 pairs, so one pair is 0.74 points and the standard error at 25 % is 3.7 points: a difference
means little without these. Sources: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209; Q. McNemar,
Psychometrika 12 (1947) 153, in its exact binomial form; B. Efron, Ann. Stat. 7 (1979) 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diva_rs.errors import ConfigError, DataError, ShapeError
from diva_rs.evaluation.result import Result


def wilson_interval(right: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of the share ``right / total``, in [0, 1]; all of it if ``total`` is 0.

    >>> low, high = wilson_interval(27, 135)
    >>> round(low, 3), round(high, 3)
    (0.141, 0.275)
    """
    from scipy import stats  # importing it takes a second

    check_confidence(confidence)
    if total == 0:
        return 0.0, 1.0
    interval = stats.binomtest(right, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def interval_of(right: int, total: int, confidence: float) -> tuple[float, float]:
    """`wilson_interval` in per cent."""
    low, high = wilson_interval(right, total, confidence)
    return 100 * low, 100 * high


def mcnemar_exact(gained: int, lost: int) -> float:
    """Two-sided p-value of the exact McNemar test.

    ``gained`` items are wrong before and right after, ``lost`` the reverse. Under the null hypothesis each is
    a fair coin flip. 1.0 if nothing flipped.

    >>> round(mcnemar_exact(gained=10, lost=2), 4)
    0.0386
    """
    from scipy import stats

    flips = gained + lost
    return float(stats.binomtest(min(gained, lost), flips).pvalue) if flips else 1.0


def smallest_difference(flips: int, confidence: float = 0.95) -> int:
    """The smallest difference, gained minus lost, that the exact McNemar test distinguishes from chance.

    ``flips`` is how many items were gained or lost. If they are too few to distinguish any difference
    from chance, the result is how many flips, all in one direction, would be needed.

    >>> smallest_difference(12), smallest_difference(60), smallest_difference(2)
    (8, 18, 6)
    """
    from scipy import stats

    check_confidence(confidence)
    tail = (1 - confidence) / 2
    while True:
        lost = int(stats.binom.ppf(tail, flips, 0.5))
        lost -= bool(stats.binom.cdf(lost, flips, 0.5) > tail)
        if lost >= 0:
            return flips - 2 * lost
        flips += 1


def paired_bootstrap(
    before: Sequence[bool],
    after: Sequence[bool],
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of the difference of two shares on the same items, after minus before, in [-1, 1].

    Items are drawn with replacement: how many of a resample are gained and lost is multinomial.

    >>> paired_bootstrap([False] * 10, [True] * 10)
    (1.0, 1.0)
    """
    check_confidence(confidence)
    gained, lost = _flips(before, after)
    items = len(before)
    shares = [len(lost) / items, len(gained) / items]
    counts = np.random.default_rng(seed).multinomial(items, [*shares, 1 - sum(shares)], resamples)
    differences = (counts[:, 1] - counts[:, 0]) / items
    low, high = np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Comparison(Result):
    """Two models on the same items, in per cent and percentage points."""

    name: str  # what was scored
    before: float
    after: float
    difference: float  # after minus before, in points
    interval: tuple[float, float]  # of the difference, by the paired bootstrap, in points
    p_value: float  # of the exact McNemar test
    gained: tuple[int, ...]  # positions of the items that were wrong before and are right after
    lost: tuple[int, ...]  # positions of the items that were right before and are wrong after
    items: int  # how many were scored
    confidence: float = 0.95  # of the interval, as the next two
    resamples: int = 10_000
    seed: int = 0

    def __str__(self) -> str:
        low, high = self.interval
        old, new = self.right
        flips = len(self.gained) + len(self.lost)
        return (
            f"{self.name}: {old} -> {new} of {self.items} right ({new - old:+}), {self.before:.1f} -> "
            f"{self.after:.1f} ({self.difference:+.1f} points, {self.confidence:.0%} interval {low:+.1f} to "
            f"{high:+.1f}); {len(self.gained)} gained, {len(self.lost)} lost of {self.items}, exact McNemar "
            f"p = {self.p_value:.3g}; at {flips} flips a difference below {self.resolvable} is within chance"
        )

    @property
    def right(self) -> tuple[int, int]:
        """How many items are right before and after."""
        old, new = (round(share * self.items / 100) for share in (self.before, self.after))
        return old, new

    @property
    def resolvable(self) -> int:
        """How many items of difference these data can distinguish from nothing: see `smallest_difference`."""
        return smallest_difference(len(self.gained) + len(self.lost), self.confidence)


def compare_outcomes(
    before: Sequence[bool],
    after: Sequence[bool],
    name: str,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two models by which items each has right.

    >>> print(compare_outcomes([True] * 30 + [False] * 70, [True] * 40 + [False] * 60, "MMVP-VLM"))
    MMVP-VLM: 30 -> 40 of 100 right (+10), 30.0 -> 40.0 (+10.0 points, 95% interval +5.0 to +16.0); 10 gained,
    0 lost of 100, exact McNemar p = 0.00195; at 10 flips a difference below 8 is within chance
    """
    low, high = paired_bootstrap(before, after, confidence, resamples, seed)
    gained, lost = _flips(before, after)
    items = len(before)
    return Comparison(
        name=name,
        before=100 * sum(map(bool, before)) / items,
        after=100 * sum(map(bool, after)) / items,
        difference=100 * (len(gained) - len(lost)) / items,
        interval=(100 * low, 100 * high),
        p_value=mcnemar_exact(len(gained), len(lost)),
        gained=gained,
        lost=lost,
        items=items,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )


def _flips(before: Sequence[bool], after: Sequence[bool]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The positions of the items that were gained, and of those that were lost."""
    if len(before) != len(after) or len(before) == 0:
        raise ShapeError(f"{len(before)} outcomes before and {len(after)} after: one per item is needed")
    old, new = (np.asarray(side, dtype=bool) for side in (before, after))
    gained, lost = (np.flatnonzero(side).tolist() for side in (new & ~old, old & ~new))
    return tuple(gained), tuple(lost)


def check_confidence(confidence: float) -> None:
    """Raise ConfigError unless the confidence lies inside (0, 1), before a model is scored."""
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence={confidence} must lie inside (0, 1), for example 0.95")


@dataclass(frozen=True)
class Change:
    """A score's change over seeds, in points: each seed's after minus its before."""

    before: float  # mean over the seeds, as after
    after: float
    difference: float  # mean of the differences
    low: float  # 95 % interval of that mean, by Student's t; infinite with a single seed
    high: float
    seeds: int  # how many

    def __str__(self) -> str:
        interval = "" if self.seeds == 1 else f" [{self.low:+.1f}, {self.high:+.1f}]"
        return f"{self.difference:+.1f}{interval}"


def change(before: Sequence[float], after: Sequence[float], confidence: float = 0.95) -> Change:
    """The change of one score over seeds, from one pair of scores per seed.

    >>> print(change([30.0, 32.0, 31.0], [33.0, 36.0, 34.0]))
    +3.3 [+1.9, +4.8]
    """
    from scipy import stats

    if len(before) != len(after) or not len(before):
        raise DataError(f"{len(before)} scores before and {len(after)} after: one pair per seed is needed")
    differences = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    mean, count, half = float(differences.mean()), len(differences), math.inf
    if count > 1:
        t = float(stats.t.ppf((1 + confidence) / 2, count - 1))
        half = t * float(differences.std(ddof=1)) / math.sqrt(count)
    return Change(float(np.mean(before)), float(np.mean(after)), mean, mean - half, mean + half, count)
