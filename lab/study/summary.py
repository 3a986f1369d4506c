"""Summary of the runs: paired differences over seeds with intervals, as table, CSV, plot and text."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diva_rs._base.files import write_text
from diva_rs._base.optional import require
from diva_rs.errors import DataError
from diva_rs.evaluation.statistics import Change, change
from lab.study.cost import COSTS
from lab.study.outcomes import ITEMS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADLINES = {
    "mini_mmvp": "mini-MMVP",
    "zero_shot": "zero-shot",
    "probe_pooled": "probes, pooled",
    "probe_class": "probes, class",
    "probe_patches": "probes, patches",
}


class Summary:
    """The changes that each arm makes.

    Args:
        rows: of `run_all`.
        arms: their names, in the order of the table.

    >>> row = {"arm": "a", "seed": 0, "before": {"zero_shot": 90.0}, "after": {"zero_shot": 91.5}}
    >>> Summary([row], ["a"]).of("a", "zero_shot").difference
    1.5
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> None:
        self.arms = list(arms)
        self.rows = {arm: [row for row in rows if row["arm"] == arm] for arm in self.arms}
        empty = [arm for arm in self.arms if not self.rows[arm]]
        if empty:
            raise DataError(f"there is no run of {empty[0]!r}")

    def of(self, arm: str, score: str) -> Change:
        """The change of ``score`` by ``arm``."""
        rows = self.rows[arm]
        return change([row["before"][score] for row in rows], [row["after"][score] for row in rows])

    def table(
        self,
        scores: Mapping[str, str] = HEADLINES,
        of: Callable[[str, str], Change] | None = None,
    ) -> str:
        """Markdown: a line per arm, a column per score, the change in points with its interval.

        ``of`` is by default `of`: intervals over seeds.
        """
        lines = ["| | seeds | " + " | ".join(scores.values()) + " |", "|---" * (len(scores) + 2) + "|"]
        for arm in self.arms:
            cells = [str((of or self.of)(arm, score)) for score in scores]
            lines.append(f"| {arm} | {len(self.rows[arm])} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def over_items(self, arm: str, score: str) -> Change:
        """The change of ``score`` with its interval over the items, the mean of those of the seeds.

        All seeds are scored on the same items, so the interval of the mean change is at most that wide.
        """
        of, rows = self.of(arm, score), self.rows[arm]
        low, high = np.mean([row["intervals"][score] for row in rows], axis=0).tolist()
        return replace(of, low=low, high=high, seeds=max(of.seeds, 2))

    def crossed(self, arm: str, score: str) -> Change:
        """The change of ``score`` with its interval over the seeds and over the items.

        All seeds are scored on the same items, so both vary: the variance of the mean is the sum of that over
        the seeds and that of the items' mean changes. Scores without a list of changed items, or runs of one
        seed, have the interval of `of`.
        """
        of, rows = self.of(arm, score), self.rows[arm]
        lists = [row.get("changed", {}).get(score) for row in rows]
        if of.seeds == 1 or None in lists:
            return of
        means = np.zeros(round(lists[0][ITEMS]))
        for one in lists:
            for item, points in one.items():
                if item != ITEMS:
                    means[int(item)] += points / len(rows)
        items = 1.96 * float(means.std(ddof=1)) / len(means) ** 0.5
        half = float(np.hypot(of.high - of.difference, items))
        return replace(of, low=of.difference - half, high=of.difference + half)

    def minus(self, arm: str, other: str, score: str) -> Change:
        """How much more ``arm`` changes ``score`` than ``other``: over the seeds that both have, paired."""
        gains = [
            {row["seed"]: row["after"][score] - row["before"][score] for row in self.rows[name]}
            for name in (other, arm)
        ]
        before, after = gains
        both = sorted(before.keys() & after.keys())
        return change([before[seed] for seed in both], [after[seed] for seed in both])

    def costs(self) -> str:
        """Markdown: what a run of each arm costs, on the mean."""
        lines = ["| | " + " | ".join(COSTS.values()) + " |", "|---" * (len(COSTS) + 1) + "|"]
        for arm in self.arms:
            means = [np.mean([row.get(name, np.nan) for row in self.rows[arm]]) for name in COSTS]
            lines.append(f"| {arm} | " + " | ".join(f"{mean:,.0f}" for mean in means) + " |")
        return "\n".join(lines)

    def controlled(self, control_of: Mapping[str, str], scores: Mapping[str, str] = HEADLINES) -> str:
        """Markdown: how much more each arm changes the scores than its control."""
        lines = ["| | control | " + " | ".join(scores.values()) + " |", "|---" * (len(scores) + 2) + "|"]
        for arm, control in control_of.items():
            if {arm, control} <= self.rows.keys():
                cells = [str(self.minus(arm, control, score)) for score in scores]
                lines.append(f"| {arm} | {control} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def page(self, name: str, splits: Sequence[str], control_of: Mapping[str, str] | None = None) -> str:
        """Markdown: the scores of each split, with intervals over seeds and over items, and by attribute; the
        costs; and with ``control_of``, arm -> its control, what is left of the changes without the controls'.
        """
        parts = []
        for number, split in enumerate(splits):
            start = f"{split} " if number else ""
            headlines = {f"{start}{score}": title for score, title in HEADLINES.items()}
            parts += [f"# {name}, {split} split", self.table(headlines), self.paragraph(f"{start}mini_mmvp")]
            if control_of:
                parts += ["More than its control:", self.controlled(control_of, headlines)]
            if not all("intervals" in row for rows in self.rows.values() for row in rows):
                continue  # runs of an earlier version
            parts += ["Intervals over seeds and items:", self.table(headlines, self.crossed)]
            parts += ["Intervals over the items of the scores:", self.table(headlines, self.over_items)]
            for score in ("mini_mmvp", "probe_class"):
                before = self.rows[self.arms[0]][0]["before"]
                names = {key: key.partition("/")[2] for key in before if key.startswith(f"{start}{score}/")}
                parts += [f"{HEADLINES[score]}, over the items:", self.table(names, self.over_items)]
        if all("cpu_seconds" in row for rows in self.rows.values() for row in rows):
            parts += ["Costs of a run:", self.costs()]
        return "\n\n".join(parts) + "\n"

    def to_csv(self, path: Path) -> None:
        """A line per arm and score; costs are "after"."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["arm", "score", "seeds", "before", "after", "difference", "low", "high"])
        for arm in self.arms:
            for score in self.rows[arm][0]["before"]:
                of = self.of(arm, score)
                figures = (of.before, of.after, of.difference, of.low, of.high)
                table.writerow([arm, score, of.seeds, *(f"{figure:.3f}" for figure in figures)])
            for score in COSTS:
                costs = [row[score] for row in self.rows[arm] if score in row]
                if costs:
                    table.writerow([arm, score, len(costs), 0, f"{np.mean(costs):.3f}", "", "", ""])
        write_text(path, text.getvalue())

    def plot(self, scores: Mapping[str, str] = HEADLINES) -> "Figure":
        """A panel per score, a row per arm: the change and its interval, zero marked."""
        plt = require("matplotlib.pyplot", extra="plot")
        height = 0.9 + 0.32 * len(self.arms)
        figure: Figure
        figure, axes = plt.subplots(
            1, len(scores), figsize=(2.3 * len(scores) + 2, height), sharey=True, layout="constrained"
        )
        places = range(len(self.arms), 0, -1)
        for ax, (score, title) in zip(np.atleast_1d(axes), scores.items(), strict=True):
            ax.axvline(0, color="0.6", linewidth=0.8)
            for place, arm in zip(places, self.arms, strict=True):
                of = self.of(arm, score)
                if of.seeds > 1:
                    ax.plot([of.low, of.high], [place, place], color="tab:blue", linewidth=1.5)
                ax.plot([of.difference], [place], marker="o", markersize=5, color="tab:blue")
            ax.set_title(title, fontsize=9)
            ax.set_yticks(list(places), self.arms, fontsize=8)
            ax.tick_params(labelsize=8)
            ax.spines[["top", "right"]].set_visible(False)
            ax.set_xlabel("points", fontsize=8)
        return figure

    def paragraph(self, score: str = "mini_mmvp") -> str:
        """A paragraph: the arms that change the score, those that do not, and the zero-shot loss."""
        up: list[str] = []
        down: list[str] = []
        none: list[str] = []
        for arm in self.arms:
            of = self.of(arm, score)
            (up if of.low > 0 else down if of.high < 0 else none).append(f"{arm} ({of})")
        name, count = HEADLINES.get(score, score), min(len(rows) for rows in self.rows.values())
        parts = [f"Over {count} seeds, {name} in points, 95 % intervals:"]
        parts.append(f"it rises with {'; '.join(up)}." if up else "no arm raises it beyond the interval.")
        if down:
            parts.append(f"It falls with {'; '.join(down)}.")
        if none:
            parts.append(f"Not distinguishable from no change: {'; '.join(none)}.")
        lost = [arm for arm in self.arms if self.of(arm, "zero_shot").high < -0.5]
        if lost:
            parts.append(f"More than half a point of zero-shot is lost with {', '.join(lost)}.")
        return " ".join(parts)
