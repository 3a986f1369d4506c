"""A score before and after, and what may be said of the difference."""

from collections.abc import Sequence
from dataclasses import dataclass

from diva_rs.evaluation.statistics import Comparison
from diva_rs.report.words import between, level, points

Interval = tuple[float, float]
Score = tuple[float, Interval | None]  # in per cent


@dataclass(frozen=True)
class Change:
    """One score of two models, in per cent.

    Attributes:
        label: what was scored.
        before, after: the scores; None if one was not measured.
        before_interval, after_interval: of each score alone.
        interval: of the difference, paired over the items; None if it is not known.
        p_value: of the exact McNemar test on the same items.
        confidence: of all intervals.
        note: why the two cannot be compared, in place of a reading.
    """

    label: str
    before: float | None
    after: float | None
    before_interval: Interval | None = None
    after_interval: Interval | None = None
    interval: Interval | None = None
    p_value: float | None = None
    confidence: float = 0.95
    note: str = ""

    @property
    def difference(self) -> float | None:
        """After minus before, in points."""
        return None if self.before is None or self.after is None else self.after - self.before

    @property
    def shown(self) -> int:
        """1 or -1 if a gain or a loss is shown, else 0: interval and exact test have to agree.

        With few items the bootstrap's interval alone is too narrow: four gained of fifteen, none
        lost, has an interval above zero and p = 0.125.

        >>> Change("Texts", 20.0, 46.7, interval=(6.7, 46.7), p_value=0.125).shown
        0
        """
        if self.interval is None or self.p_value is None or self.p_value >= 1 - self.confidence:
            return 0
        return int(self.interval[0] > 0) - int(self.interval[1] < 0)

    @property
    def tone(self) -> str:
        """The colour of the difference: "better", "worse" or "plain"."""
        return {1: "better", -1: "worse", 0: "plain"}[self.shown]

    @property
    def reading(self) -> str:
        """The difference in words."""
        if self.note or self.difference is None:
            return self.note or "not compared"
        if self.interval is None:
            return "not tested"
        return {1: "higher after", -1: "lower after", 0: "no difference shown"}[self.shown]

    @property
    def sentence(self) -> str:
        """Difference, interval and reading in one line.

        >>> Change("Texts", 20.0, 26.7, interval=(1.3, 26.7), p_value=0.01).sentence
        '+6.7 points (95 % interval +1.3 to +26.7, exact McNemar p = 0.01): higher after'
        """
        if self.difference is None:
            return self.reading
        details = []
        if self.interval is not None:
            details.append(f"{level(self.confidence)} interval {_points_between(self.interval)}")
        if self.p_value is not None:
            details.append(f"exact McNemar p = {self.p_value:.2g}")
        inside = f" ({', '.join(details)})" if details else ""
        return f"{points(self.difference)} points{inside}: {self.reading}"

    @property
    def cells(self) -> tuple[str, ...]:
        """The row of a table: label, both scores and the difference with their intervals, reading.

        >>> Change("dtd", 50.0, None).cells
        ('dtd', '50.0', 'not measured', '', 'not compared')
        """
        scores = ((self.before, self.before_interval), (self.after, self.after_interval))
        difference = ""
        if self.difference is not None:
            difference = points(self.difference)
            difference += f" ({_points_between(self.interval)})" if self.interval else ""
        return (self.label, *(_score(*score) for score in scores), difference, self.reading)


def changed(
    label: str,
    scores: Sequence[Score | None],
    found: Comparison | None = None,
    confidence: float = 0.95,
    note: str = "",
) -> Change:
    """The change from the first of two scores to the second; ``found`` is their paired comparison."""
    (before, before_interval), (after, after_interval) = (score or (None, None) for score in scores)
    intervals = (before_interval, after_interval)
    if found is None:
        return Change(label, before, after, *intervals, confidence=confidence, note=note)
    return Change(label, before, after, *intervals, found.interval, found.p_value, found.confidence)


def _score(score: float | None, interval: Interval | None) -> str:
    if score is None:
        return "not measured"
    return f"{score:.1f}" + ("" if interval is None else f" ({between(interval)})")


def _points_between(interval: Interval) -> str:
    return f"{points(interval[0])} to {points(interval[1])}"
