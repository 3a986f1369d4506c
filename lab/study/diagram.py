"""A figure of judgements: how often they are right by attribute, and a reliability diagram."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from diva_rs._base.optional import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKS = {
    "accuracy": ("o", "right"),
    "estimated": ("x", "estimated without labels"),
    "chance": ("_", "chance"),
}


def diagram(accuracy: Mapping[str, Mapping[str, float]], calibration: Sequence[Sequence[float]]) -> "Figure":
    """Left: per cent of the judgements by attribute. Right: the share that is right against the
    probability of the best caption; a disc's area stands for its number of sets.

    Args:
        accuracy: of `lab.study.captions.accuracy`.
        calibration: of `lab.study.captions.calibration`.
    """
    plt = require("matplotlib.pyplot", extra="plot")
    figure: Figure
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.4), layout="constrained", width_ratios=(3, 2))
    names = sorted(accuracy, key=lambda name: -accuracy[name]["accuracy"])
    for score, (mark, label) in _MARKS.items():
        left.plot(names, [accuracy[name][score] for name in names], mark, label=label, markersize=7)
    left.set(ylabel="per cent", ylim=(0, 105))
    left.tick_params(axis="x", rotation=35)
    left.legend(fontsize=8, frameon=False, loc="center left")
    likely, share, sets = np.array(calibration).reshape(-1, 3).T
    right.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    right.scatter(likely, share, s=10 + 200 * sets / sets.max(initial=1))
    right.set(xlabel="probability of the best caption", ylabel="share right", xlim=(0, 1.05), ylim=(0, 1.05))
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    return figure
