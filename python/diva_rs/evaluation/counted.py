"""The common part of scores that count: how many of the items that were asked are right."""

from collections.abc import Iterable
from typing import Any

from diva_rs.errors import DataError
from diva_rs.evaluation.result import Result
from diva_rs.evaluation.statistics import Comparison, compare_outcomes, interval_of


class Counted(Result):
    """The base of the scores that count items.

    ``kind`` is "detail" for a score of fine detail, "retention" for one of what the model could do before.
    ``is_test_set`` holds for published test sets: no model should be chosen by its score there.
    """

    name: str
    kind: str
    is_test_set: bool
    confidence: float  # of the intervals

    @property
    def title(self) -> str:
        """What was scored, in lines and tables."""
        return self.name

    @property
    def unit(self) -> str:
        """What is counted."""
        return "items"

    @property
    def answers(self) -> tuple[tuple[Any, str, bool], ...]:
        """(what was asked, its category, whether it is right), item by item."""
        raise NotImplementedError

    @property
    def outcomes(self) -> tuple[bool, ...]:
        """For each item, in order, whether it is right."""
        return tuple(right for _, _, right in self.answers)

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """(right, asked) of each category."""
        right, parts = self.outcomes, self._places().items()
        return {name: (sum(right[place] for place in own), len(own)) for name, own in parts}

    @property
    def shares(self) -> dict[str, float]:
        """The share of right items of each category, in per cent."""
        return {name: 100 * right / asked for name, (right, asked) in self.counts.items()}

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Wilson's interval of each category, in per cent."""
        return {name: interval_of(*counts, self.confidence) for name, counts in self.counts.items()}

    @property
    def average(self) -> float:
        """Mean over the categories, in per cent."""
        return sum(self.shares.values()) / len(self.shares)

    @property
    def right(self) -> int:
        """How many items are right."""
        return sum(self.outcomes)

    @property
    def asked(self) -> int:
        """How many items were scored."""
        return len(self.answers)

    @property
    def per_cent(self) -> float:
        """The share of right items, in per cent."""
        return 100 * self.right / self.asked

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of the share, in per cent."""
        return interval_of(self.right, self.asked, self.confidence)

    @property
    def decisions(self) -> list[dict[str, Any]]:
        """One row per item: what `to_csv` writes."""
        return self.records()

    @property
    def line(self) -> str:
        """The score in one line: the count, its interval in per cent, the share."""
        return counted_line(self.title, self.right, self.asked, self.interval, self.unit)

    def compare(self, other: Any, resamples: int = 10_000, seed: int = 0) -> Comparison:
        """This model (before) against ``other`` (after), scored on the same items in the same order.

        Raises DataError if the items differ.
        """
        return self._compare(other, {self.title: range(self.asked)}, resamples, seed)[self.title]

    def compare_categories(self, other: Any, resamples: int = 10_000, seed: int = 0) -> dict[str, Comparison]:
        """As `compare`, for the items of each category."""
        return self._compare(other, self._places(), resamples, seed)

    def _places(self) -> dict[str, list[int]]:
        places: dict[str, list[int]] = {}
        for place, (_, category, _) in enumerate(self.answers):
            places.setdefault(category, []).append(place)
        return places

    def _compare(self, other: Any, parts: dict[str, Any], resamples: int, seed: int) -> dict[str, Comparison]:
        if [row[:2] for row in self.answers] != [row[:2] for row in other.answers]:
            places = [str(getattr(result, "root", "")) or result.name for result in (self, other)]
            raise DataError(f"the results are of different {self.unit}, from {' and '.join(places)}")
        old, new, rest = self.outcomes, other.outcomes, (self.confidence, resamples, seed)
        return {
            name: compare_outcomes([old[n] for n in own], [new[n] for n in own], name, *rest)
            for name, own in parts.items()
        }


def counted_line(
    name: str, right: int, asked: int, interval: tuple[float, float], unit: str = "items", width: int = 0
) -> str:
    """One score as a line, counts first; with a ``width`` of the name, as a line of a table.

    >>> counted_line("MMVP-VLM", 31, 135, (16.7, 30.7), "pairs")
    'MMVP-VLM  31 of 135 pairs right  [16.7, 30.7]  23.0 %'
    """
    low, high = interval
    share = 100 * right / asked
    if not width:
        return f"{name}  {right} of {asked} {unit} right  [{low:.1f}, {high:.1f}]  {share:.1f} %"
    count = f"{right:>4} of {asked:<5} {unit} right"
    return f"{name:<{width}}  {count}  [{low:4.1f}, {high:5.1f}]  {share:5.1f} %"


def counted_table(
    rows: Iterable[tuple[str, tuple[int, int]]], unit: str, confidence: float, title: str = ""
) -> str:
    """Lines of scores below each other, (name, (right, asked)) each, under a title."""
    listed = list(rows)
    width = max(map(len, [title, *(name for name, _ in listed)]))
    lines = [f"{title:<{width}}  count, {confidence:.0%} interval in per cent, per cent"]
    for name, counts in listed:
        lines.append(counted_line(name, *counts, interval_of(*counts, confidence), unit, width))
    return "\n".join(lines)
