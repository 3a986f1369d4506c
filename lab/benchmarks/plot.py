"""The picture of the benchmark: the step of each contestant, and its growth with N."""

import io
import statistics
from collections.abc import Sequence
from typing import Any

from diva_rs._base.optional import require
from lab.benchmarks.contestants import NAMES

Record = dict[str, Any]

# Okabe and Ito (2008): distinct for colour-blind readers and in grey.
_COLOURS = dict(zip(NAMES, ("#999999", "#E69F00", "#0072B2", "#56B4E9"), strict=True))


def figure(records: Sequence[Record]) -> Any:
    """The newest step of every size and precision, and the newest growth, as a matplotlib figure.

    None if no step was measured.
    """
    steps = {
        f"{record['size']}, {record['precision']}": record["rows"]["step"]["contestants"]
        for record in records
        if "step" in record["rows"]
    }
    grown = [record for record in records if "growth" in record["rows"]]
    if not steps:
        return None
    matplotlib = require("matplotlib.figure", extra="plot")  # pyplot would need a display
    drawn = matplotlib.Figure(figsize=(8.6, 1.6 + 0.8 * len(steps)), layout="constrained")
    widths = [3, 2] if grown else [1]
    panels = drawn.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    _bars(panels[0], steps)
    if grown:
        _growth(panels[1], grown[-1])
    return drawn


def svg(figure: Any) -> str:
    """The figure as text; equal figures are equal texts."""
    written = io.StringIO()
    with require("matplotlib", extra="plot").rc_context({"svg.hashsalt": "diva-rs"}):
        figure.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()


def _bars(axes: Any, steps: dict[str, Any]) -> None:
    height = 0.8 / len(NAMES)
    for place, times in enumerate(steps.values()):
        slowest = max(statistics.median(one["wall"]) for one in times.values())
        for number, (name, one) in enumerate(times.items()):
            seconds = statistics.median(one["wall"])
            y = place + (number - (len(times) - 1) / 2) * height
            label = name if place == 0 else None
            axes.barh(y, seconds / slowest, height * 0.92, color=_COLOURS[name], label=label)
            axes.text(seconds / slowest + 0.01, y, _told(seconds), va="center", fontsize=7.5)
    axes.set_yticks(range(len(steps)), list(steps))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.16)
    axes.set_xlabel("time of a step, against the slowest")
    axes.spines[["top", "right"]].set_visible(False)
    axes.figure.legend(loc="outside upper center", ncols=len(NAMES), frameon=False)


def _growth(axes: Any, record: Record) -> None:
    points = record["rows"]["growth"]["draws"]
    numbers = [int(n) for n in points]
    for name in next(iter(points.values())):
        seconds = [statistics.median(one[name]["wall"]) for one in points.values()]
        axes.plot(numbers, seconds, "o-", color=_COLOURS[name], markersize=4)
    tower = record["rows"]["growth"]["tower"]
    axes.plot(numbers, [statistics.median(tower[n]["wall"]) for n in points], "k:", lw=1)
    axes.annotate(
        "vision tower in ours",
        (numbers[-1], statistics.median(tower[str(numbers[-1])]["wall"])),
        ha="right",
        va="bottom",
        fontsize=7.5,
    )
    axes.set_xticks(numbers)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"draws N ({record['size']}, {record['precision']})")
    axes.set_ylabel("seconds of a step")
    axes.spines[["top", "right"]].set_visible(False)


def _told(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1e3 * seconds:.0f} ms"
