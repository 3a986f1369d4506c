"""A score before and after, and what may be said of the difference."""

from dataclasses import dataclass
from typing import NamedTuple

from diva_rs.evaluation.statistics import Comparison
from diva_rs.report.words import between, level, points

Interval = tuple[float, float]


class Score(NamedTuple):
    """One score of one model."""

    value: float  # in per cent
    interval: Interval | None = None  # of this score alone
    counts: tuple[int, int] | None = None  # (right, asked); None for a score that does not count items


@dataclass(frozen=True)
class Change:
    """One score of two models, in per cent.

    >>> from diva_rs.evaluation.statistics import compare_outcomes
    >>> outcomes = [False] * 4 + [True] * 3 + [False] * 8, [True] * 7 + [False] * 8
    >>> found = compare_outcomes(*outcomes, "Texts")
    >>> Change("Texts", (Score(20.0), Score(46.7)), found).sentence
    '+26.7 points (95 % interval +6.7 to +53.3, exact McNemar p = 0.12): no difference shown'
    >>> Change("dtd", (Score(50.0), None)).cells
    ('dtd', '50.0', 'not measured', '', 'not compared')
    """

    label: str
    scores: tuple[Score | None, Score | None]  # before and after; None if it was not measured
    found: Comparison | None = None  # the paired comparison on the same items
    confidence: float = 0.95  # of all intervals
    note: str = ""  # why the two cannot be compared, in place of a reading

    @property
    def before(self) -> float | None:
        """The score before."""
        return self.scores[0].value if self.scores[0] else None

    @property
    def after(self) -> float | None:
        """The score after."""
        return self.scores[1].value if self.scores[1] else None

    @property
    def difference(self) -> float | None:
        """After minus before, in points."""
        return None if self.before is None or self.after is None else self.after - self.before

    @property
    def interval(self) -> Interval | None:
        """The interval of the difference, paired over the items; None if it is not known."""
        return self.found.interval if self.found else None

    @property
    def shown(self) -> int:
        """1 or -1 if a gain or a loss is shown, else 0: interval and exact test have to agree.

        With few items the bootstrap's interval alone is too narrow: four gained of fifteen, none lost, has
        an interval above zero and p = 0.125.
        """
        if self.found is None or self.found.p_value >= 1 - self.confidence:
            return 0
        low, high = self.found.interval
        return int(low > 0) - int(high < 0)

    @property
    def tone(self) -> str:
        """The colour of the difference: "better", "worse" or "plain"."""
        return {1: "better", -1: "worse", 0: "plain"}[self.shown]

    @property
    def reading(self) -> str:
        """The difference in words."""
        if self.note or self.difference is None:
            return self.note or "not compared"
        if self.found is None:
            return "not tested"
        return {1: "higher after", -1: "lower after", 0: "no difference shown"}[self.shown]

    @property
    def head(self) -> tuple[str, str]:
        """The two scores at a glance, and the rest in words: counts first, where there are some."""
        old, new = ("?" if score is None else f"{score.value:.1f}" for score in self.scores)
        share, counts = f"{old} → {new} %", [score and score.counts for score in self.scores]
        asked = next((pair[1] for pair in counts if pair), None)
        if asked is None:
            return share, self.sentence
        before, after = ("?" if pair is None else str(pair[0]) for pair in counts)
        return f"{before} → {after} of {asked}", f"{share}, {self.sentence}"

    @property
    def sentence(self) -> str:
        """Difference, interval and reading in one line."""
        if self.difference is None:
            return self.reading
        inside = ""
        if self.found is not None:
            interval = f"{level(self.confidence)} interval {_points_between(self.found.interval)}"
            inside = f" ({interval}, exact McNemar p = {self.found.p_value:.2g})"
        return f"{points(self.difference)} points{inside}: {self.reading}"

    @property
    def cells(self) -> tuple[str, ...]:
        """The row of a table: label, both scores and the difference with their intervals, reading."""
        difference = ""
        if self.difference is not None:
            difference = points(self.difference)
            difference += f" ({_points_between(self.found.interval)})" if self.found else ""
        return (self.label, *map(_score, self.scores), difference, self.reading)


def _score(score: Score | None) -> str:
    if score is None:
        return "not measured"
    value, interval, counts = score
    count = "" if counts is None else f"{counts[0]} of {counts[1]}: "
    return f"{count}{value:.1f}" + ("" if interval is None else f" ({between(interval)})")


def _points_between(interval: Interval) -> str:
    return f"{points(interval[0])} to {points(interval[1])}"
