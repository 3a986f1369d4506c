"""A score before and after, and what may be said of the difference."""

from collections.abc import Sequence
from dataclasses import dataclass

from diva_rs.evaluation.statistics import Comparison
from diva_rs.report import words
from diva_rs.report.blocks import Figure, Table, Text
from diva_rs.report.comparisons import Difference, differences, dumbbells

Interval = tuple[float, float]


@dataclass(frozen=True)
class Change:
    """One score of two models, in per cent.

    Attributes:
        label: what was scored.
        before, after: the scores; None where one was not measured.
        before_interval, after_interval: of each score alone.
        interval: of the difference, paired over the items; None where it is not known.
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
        """1 or -1 where a gain or a loss is shown, else 0: interval and exact test have to agree.

        With few items the bootstrap's interval alone is too narrow: four gained of fifteen, none lost, has an
        interval above zero and p = 0.125.

        >>> Change("Texts", 20.0, 46.7, interval=(6.7, 46.7), p_value=0.125).shown
        0
        """
        if self.interval is None or self.p_value is None or self.p_value >= 1 - self.confidence:
            return 0
        return int(self.interval[0] > 0) - int(self.interval[1] < 0)

    @property
    def reading(self) -> str:
        """The difference in words.

        >>> Change("Texts", 20.0, 26.7, interval=(-13.3, 26.7), p_value=1.0).reading
        'no difference shown'
        """
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
            details.append(f"{confidence(self.confidence)} interval {words.points_between(*self.interval)}")
        if self.p_value is not None:
            details.append(f"exact McNemar p = {self.p_value:.2g}")
        inside = f" ({', '.join(details)})" if details else ""
        return f"{words.points(self.difference)} points{inside}: {self.reading}"


def compared(
    label: str,
    comparison: Comparison,
    before_interval: Interval | None = None,
    after_interval: Interval | None = None,
) -> Change:
    """The change that a paired comparison found.

    >>> from diva_rs.evaluation import compare_outcomes
    >>> compared("dtd", compare_outcomes([True, False], [True, False], "dtd")).reading
    'no difference shown'
    """
    return Change(
        label,
        comparison.before,
        comparison.after,
        before_interval,
        after_interval,
        comparison.interval,
        comparison.p_value,
        comparison.confidence,
    )


def changes_table(caption: str, first: str, changes: Sequence[Change]) -> Table:
    """Before, after and difference with their intervals, and the reading; one row per change.

    >>> changes_table("Scores", "Data set", [Change("dtd", 50.0, None)]).rows
    (('dtd', '50.0', 'not measured', '', 'not compared'),)
    """
    level = confidence(changes[0].confidence)
    header = (first, "Before, %", "After, %", "Difference, points", "Reading")
    rows = tuple(
        (
            change.label,
            _score(change.before, change.before_interval),
            _score(change.after, change.after_interval),
            _difference(change),
            change.reading,
        )
        for change in changes
    )
    return Table(f"{caption} (in brackets: {level} intervals)", header, rows, frozenset({1, 2, 3}))


def differences_figure(changes: Sequence[Change], what: str) -> Figure:
    """The differences that have an interval, each with it, and zero."""
    rows = [
        Difference(change.label, change.after - change.before, *change.interval, change.shown)
        for change in changes
        if change.interval is not None and change.before is not None and change.after is not None
    ]
    listed = "; ".join(f"{row.label} {words.points(row.value)}" for row in rows)
    alt = f"Difference of {what}, after minus before, in points: {listed}."
    level = confidence(changes[0].confidence)
    caption = (
        f"Differences of {what} with their paired {level} bootstrap intervals. Grey: no difference shown."
    )
    legend = (
        ("dot plain", "no difference shown"),
        ("dot better", "higher after"),
        ("dot worse", "lower after"),
    )
    return Figure(differences(rows, alt), alt, caption, legend)


def scores_figure(changes: Sequence[Change], what: str) -> Figure:
    """Both scores of each change, joined by a line."""
    rows = [
        (change.label, change.before, change.after)
        for change in changes
        if change.before is not None and change.after is not None
    ]
    listed = "; ".join(f"{label} {before:.1f} and {after:.1f}" for label, before, after in rows)
    alt = f"{what} before and after, in per cent: {listed}."
    return Figure(dumbbells(rows, alt), alt, f"{what}, before and after.", BEFORE_AFTER)


BEFORE_AFTER = (("ring before", "before"), ("dot after", "after"))


def multiplicity(number: int, what: str, level: float) -> Text:
    """What many intervals at once mean.

    >>> multiplicity(9, "patterns", 0.95).text[:62]
    '9 patterns are tested at once: with exact 95 % intervals, at l'
    """
    return Text(
        f"{number} {what} are tested at once: with exact {confidence(level)} intervals, at least one would "
        f"exclude zero in {100 * (1 - level**number):.0f} of 100 runs in which nothing changed. Read single "
        f"{what} with that in mind.",
        note=True,
    )


def confidence(level: float) -> str:
    """An interval's confidence.

    >>> confidence(0.95)
    '95 %'
    """
    return f"{100 * level:.3g} %"


def _score(score: float | None, interval: Interval | None) -> str:
    if score is None:
        return "not measured"
    return f"{score:.1f}" + ("" if interval is None else f" ({words.between(*interval)})")


def _difference(change: Change) -> str:
    if change.difference is None:
        return ""
    inside = "" if change.interval is None else f" ({words.points_between(*change.interval)})"
    return f"{words.points(change.difference)}{inside}"
