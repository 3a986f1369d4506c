"""Whether each item is right, by attribute, and how sure a change is over these items."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from diva_rs.evaluation.statistics import change

ITEMS = "items"  # their number, in a list of changed items


@dataclass(frozen=True, eq=False)
class Outcomes:
    """(N, K) float64 for N items and the K attributes ``names``: 1 right, 0 wrong, NaN not asked.

    Without names the one column is of no attribute.
    """

    names: tuple[str, ...]
    right: Any

    def scores(self) -> dict[str, float]:
        """The share of right items of each attribute, in per cent."""
        shares = np.nanmean(self.right, axis=0).tolist()
        return {name: 100 * share for name, share in zip(self.names, shares, strict=True)}

    def average(self) -> Any:
        """(N) numbers whose mean is the average over the attributes, in per cent."""
        asked = ~np.isnan(self.right)
        return (100 * np.nan_to_num(self.right) / asked.sum(0)).mean(1) * len(self.right)


class Scores(dict[str, float]):
    """Scores in per cent, and what they were counted from: score -> `Outcomes`."""

    def __init__(self, scores: dict[str, float], outcomes: dict[str, Outcomes]) -> None:
        super().__init__(scores)
        self.outcomes = outcomes


def intervals(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, list[float]]:
    """For each score and attribute the paired 95 % interval of the change over the items, in points.

    It says how sure the change of this one model is, and nothing about other seeds. Scores that were not
    counted from `Outcomes` have none.

    >>> of = [Outcomes(("a", "b"), np.array([[1, 0.0], [value, 0.0]])) for value in (0, 1)]
    >>> intervals(*(Scores({}, {"pairs": one}) for one in of))["pairs/b"]
    [0.0, 0.0]
    """
    found: dict[str, list[float]] = {}
    if not isinstance(before, Scores) or not isinstance(after, Scores):
        return found
    for score, old in before.outcomes.items():
        new = after.outcomes[score]
        columns = {score: (old.average(), new.average())}
        for name, *right in zip(old.names, old.right.T, new.right.T, strict=False):
            one, two = (100 * column[~np.isnan(column)] for column in right)
            columns[f"{score}/{name}"] = (one, two)
        for name, (one, two) in columns.items():
            of = change(one, two)
            found[name] = [of.low, of.high]
    return found


def changed(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """For pairs and zero-shot the items whose outcome changed: number of the item -> its change in points.

    The mean of an item's change over all items is the change of the score. Probes ask too much of each item
    for so short a list.
    """
    found: dict[str, dict[str, float]] = {}
    if not isinstance(before, Scores) or not isinstance(after, Scores):
        return found
    for score, old in before.outcomes.items():
        if "probe" not in score:
            moved = after.outcomes[score].average() - old.average()
            found[score] = {str(item): round(float(moved[item]), 3) for item in np.flatnonzero(moved)}
            found[score][ITEMS] = len(moved)
    return found
