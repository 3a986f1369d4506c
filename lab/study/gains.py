"""Gain against cost: ``python -m lab.study.gains FILE FOLDER [FOLDER ...]``.

Draws the curves of the folders, each with the ``summary.csv`` of an ablation, into FILE-light.svg and
FILE-dark.svg.
"""

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diva_rs._base.optional import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito (2008): distinct for colour-blind readers, and on white and black alike.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#888888")
THEMES = {"light": "#1f2328", "dark": "#e6e6e6"}
SCORES = {"mini_mmvp": "pairs", "probe_class": "class probes", "zero_shot": "zero-shot"}
Curve = Mapping[str, Mapping[str, Mapping[str, str]]]
"""Arm -> score -> the line of the CSV."""


def read(folder: Path) -> Curve:
    """The curve of a folder's ``summary.csv``, its arms in order."""
    arms: dict[str, dict[str, dict[str, str]]] = {}
    with open(folder / "summary.csv", encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            arms.setdefault(line["arm"], {})[line["score"]] = line
    return arms


def gains(curves: Mapping[str, Curve], ink: str = THEMES["light"]) -> "Figure":
    """A panel per score: the change in points with its interval over the teacher's GFLOPs, a colour per
    curve. Arms in which no teacher runs are left out."""
    matplotlib = require("matplotlib", extra="plot")
    names = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    with matplotlib.rc_context(dict.fromkeys(names, ink)):
        figure: Figure = require("matplotlib.figure", extra="plot").Figure((9.5, 3.2), layout="constrained")
        panels: Any = figure.subplots(1, len(SCORES))
        for axes, (score, title) in zip(panels, SCORES.items(), strict=True):
            axes.axhline(0, color=ink, linewidth=0.8)
            for (name, curve), colour in zip(curves.items(), COLOURS, strict=False):
                found = [(float(arm["teacher_gflops"]["after"]), arm[score]) for arm in curve.values()]
                points = sorted((cost, *_interval(line)) for cost, line in found if cost)
                if points:
                    costs, middle, low, high = zip(*points, strict=True)
                    ends = [[m - one for m, one in zip(middle, low, strict=True)]]
                    ends += [[one - m for m, one in zip(middle, high, strict=True)]]
                    axes.errorbar(
                        costs, middle, ends, color=colour, marker="o", markersize=4, capsize=3, label=name
                    )
            axes.set(xscale="log", xlabel="teacher, GFLOPs", title=title)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel("change, points")
        panels[0].legend(frameon=False, fontsize=8)
    return figure


def _interval(line: Mapping[str, str]) -> tuple[float, float, float]:
    """Mean and ends; a single seed has none."""
    middle, ends = float(line["difference"]), (float(line["low"]), float(line["high"]))
    return (middle, *ends) if int(line["seeds"]) > 1 else (middle, middle, middle)


def main(argv: Sequence[str]) -> None:
    """Draw both themes."""
    file, *folders = argv
    curves = {Path(folder).name: read(Path(folder)) for folder in folders}
    for theme, ink in THEMES.items():
        gains(curves, ink).savefig(f"{file}-{theme}.svg", transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main(sys.argv[1:])
