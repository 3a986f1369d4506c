"""How sure a score is: intervals for a share, and the comparison of two models on the same items.

MMVP-VLM has 135 pairs, so one pair is 0.74 points and the standard error at 25 % is 3.7 points: a difference
means little without these. Sources: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209; Q. McNemar,
Psychometrika 12 (1947) 153, in its exact binomial form; B. Efron, Ann. Stat. 7 (1979) 1.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from diva_rs._base.arguments import checked
from diva_rs._base.optional import one_line, require
from diva_rs._base.settings import integer, number
from diva_rs.errors import ConfigError, DataError, ShapeError

_MOST_RESAMPLES = 10_000_000  # one takes 40 bytes
_FLIPS = integer(0, 100_000)  # the binomial coefficient of twice as many takes 0.4 s


def wilson_interval(right: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of the share ``right / total``, as shares in [0, 1].

    It stays inside [0, 1] and has a width even at 0 of n, which the normal approximation has not. (0, 1)
    where ``total`` is 0.

    Raises:
        ConfigError: ``right`` is not in 0 to ``total``, or ``confidence`` not inside (0, 1).

    >>> low, high = wilson_interval(27, 135)
    >>> round(low, 3), round(high, 3)
    (0.141, 0.275)
    """
    right, total = (checked(name, count, integer(0)) for name, count in (("right", right), ("total", total)))
    if right > total:
        raise ConfigError(f"right={right} must be in 0 to total={total}")
    z = NormalDist().inv_cdf((1 + checked_confidence(confidence)) / 2)
    if total == 0:
        return 0.0, 1.0
    share = right / total
    centre = share + z * z / (2 * total)
    reach = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    # At the ends the bound is exactly 0 or 1; the formula leaves a rounding error there.
    low = 0.0 if right == 0 else max(0.0, (centre - reach) / scale)
    high = 1.0 if right == total else min(1.0, (centre + reach) / scale)
    return low, high


def mcnemar_exact(gained: int, lost: int) -> float:
    """Two-sided p-value of the exact McNemar test: could as many items have flipped one way by chance?

    Only items that one model has right and the other wrong count: ``gained`` wrong before and right after,
    ``lost`` the reverse. Under no difference each is a fair coin flip. 1.0 where nothing flipped.

    Raises:
        ConfigError: a count that is negative or above 100,000.

    >>> round(mcnemar_exact(gained=10, lost=2), 4)
    0.0386
    """
    gained, lost = (checked(name, count, _FLIPS) for name, count in (("gained", gained), ("lost", lost)))
    flips, fewer = gained + lost, min(gained, lost)
    # The tail as a multiple of its largest term: each is k / (flips - k + 1) of the one after it.
    tail, term, k = 1.0, 1.0, fewer
    while k > 0 and term > 1e-18 * tail:
        term *= k / (flips - k + 1)
        tail, k = tail + term, k - 1
    return min(1.0, 2 * tail * (math.comb(flips, fewer) / (1 << flips)))


def paired_bootstrap(
    before: Sequence[bool],
    after: Sequence[bool],
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of the difference of two shares on the same items, after minus before, in [-1, 1].

    Items are drawn with replacement, each with both of its outcomes. An item adds -1, 0 or 1 to the sum, so
    the sum of a resample follows from how many of each kind were drawn, which is multinomial.

    Raises:
        ShapeError: ``before`` and ``after`` differ in length, or are empty.
        ConfigError: ``confidence`` is not inside (0, 1), or ``resamples`` below 1.

    >>> paired_bootstrap([False] * 10, [True] * 10)
    (1.0, 1.0)
    """
    gained, lost = _flips(before, after)
    confidence = checked_confidence(confidence)
    resamples = checked("resamples", resamples, integer(1, _MOST_RESAMPLES))
    seed = checked("seed", seed, integer(0))
    items = len(before)
    shares = [len(lost) / items, len(gained) / items]
    counts = np.random.default_rng(seed).multinomial(items, [*shares, 1 - sum(shares)], resamples)
    differences = (counts[:, 1] - counts[:, 0]) / items
    low, high = np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Comparison:
    """Two models on the same items, in per cent and percentage points.

    Attributes:
        name: what was scored.
        before, after: the two scores, in per cent.
        difference: after minus before, in points.
        interval: of the difference, by the paired bootstrap, in points.
        p_value: of the exact McNemar test.
        gained: positions of the items that were wrong before and are right after.
        lost: positions of the items that were right before and are wrong after.
        items: how many were scored.
        confidence, resamples, seed: of the interval.
    """

    name: str
    before: float
    after: float
    difference: float
    interval: tuple[float, float]
    p_value: float
    gained: tuple[int, ...]
    lost: tuple[int, ...]
    items: int
    confidence: float = 0.95
    resamples: int = 10_000
    seed: int = 0

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.name}: {self.before:.1f} -> {self.after:.1f} ({self.difference:+.1f} points, "
            f"{self.confidence:.0%} interval {low:+.1f} to {high:+.1f}); {len(self.gained)} gained, "
            f"{len(self.lost)} lost of {self.items}, exact McNemar p = {self.p_value:.3g}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)


def compare_outcomes(
    before: Sequence[bool],
    after: Sequence[bool],
    name: str,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two models by which items each has right.

    Raises as :func:`paired_bootstrap`.

    >>> print(compare_outcomes([True] * 30 + [False] * 70, [True] * 40 + [False] * 60, "MMVP-VLM"))
    MMVP-VLM: 30.0 -> 40.0 (+10.0 points, 95% interval +5.0 to +16.0); 10 gained, 0 lost of 100, exact McNemar
    p = 0.00195
    """
    interval = paired_bootstrap(before, after, confidence, resamples, seed)
    gained, lost = _flips(before, after)
    old, new = 100 * sum(map(bool, before)) / len(before), 100 * sum(map(bool, after)) / len(after)
    return Comparison(
        name=name,
        before=old,
        after=new,
        difference=100 * (len(gained) - len(lost)) / len(before),
        interval=(100 * interval[0], 100 * interval[1]),
        p_value=mcnemar_exact(len(gained), len(lost)),
        gained=gained,
        lost=lost,
        items=len(before),
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )


def _flips(before: Sequence[bool], after: Sequence[bool]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    before, after = (_outcomes(name, given) for name, given in (("before", before), ("after", after)))
    if len(before) != len(after) or len(before) == 0:
        raise ShapeError(f"{len(before)} outcomes before and {len(after)} after: one per item is needed")
    both = list(zip(before, after, strict=True))
    gained = tuple(i for i, (old, new) in enumerate(both) if new and not old)
    return gained, tuple(i for i, (old, new) in enumerate(both) if old and not new)


def _outcomes(name: str, given: Any) -> list[bool]:
    """Truth values of any sequence or array, one per item."""
    try:
        return [bool(outcome) for outcome in given]
    except (TypeError, ValueError, RuntimeError) as err:
        raise DataError(f"{name}: one outcome per item is needed, right or wrong ({one_line(err)})") from err


def checked_confidence(confidence: float) -> float:
    """The confidence, or ConfigError unless it lies inside (0, 1).

    >>> checked_confidence(0.95)
    0.95
    """
    value: float = checked("confidence", confidence, number())
    if not 0 < value < 1:
        raise ConfigError(f"confidence={confidence} must lie inside (0, 1), for example 0.95")
    return value


@dataclass(frozen=True)
class Change:
    """A score's change over seeds, in points: each seed's after minus its before.

    Attributes:
        before, after: means over the seeds.
        difference: mean of the differences.
        low, high: 95 % interval of that mean, by Student's t; as wide as can be with a single seed.
        seeds: how many.
    """

    before: float
    after: float
    difference: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        if self.seeds == 1:
            return f"{self.difference:+.1f}"
        return f"{self.difference:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def change(before: Sequence[float], after: Sequence[float], confidence: float = 0.95) -> Change:
    """The change of one score over seeds.

    Raises:
        DataError: no seed, or not as many scores before as after.

    >>> print(change([30.0, 32.0, 31.0], [33.0, 36.0, 34.0]))
    +3.3 [+1.9, +4.8]
    """
    if len(before) != len(after) or not len(before):
        raise DataError(f"{len(before)} scores before and {len(after)} after: one pair per seed is needed")
    differences = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    mean, count = float(differences.mean()), len(differences)
    half = math.inf
    if count > 1:
        t = float(require("scipy.stats", extra="eval").t.ppf((1 + confidence) / 2, count - 1))
        half = t * float(differences.std(ddof=1)) / math.sqrt(count)
    return Change(float(np.mean(before)), float(np.mean(after)), mean, mean - half, mean + half, count)
