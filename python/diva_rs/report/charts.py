"""Charts as SVG inside the page, drawn by matplotlib; the page's style sheet decides their colours."""

import io
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from diva_rs._base.optional import require
from diva_rs.errors import DependencyError
from diva_rs.report.change import Change
from diva_rs.report.words import level, points

# The light theme of templates/style.css: each colour becomes the variable of that name.
COLOURS = {
    "ink": "#1a1d21",
    "soft": "#555c66",
    "rule": "#d9dde3",
    "paper": "#ffffff",
    "before": "#6b7280",
    "after": "#0b62c4",
    "worse": "#b34700",
}
_BEFORE, _AFTER, _SOFT = COLOURS["before"], COLOURS["after"], COLOURS["soft"]
_TONES = {"better": _AFTER, "worse": COLOURS["worse"], "plain": _SOFT}
_STYLE = Path(__file__).parent / "templates" / "charts.mplstyle"
_WIDTH = 400  # of every chart, in units of the SVG: text of 12 units stays readable on a phone
_LETTERS = 44  # of a label: more do not fit on a phone


@dataclass(frozen=True)
class Chart:
    """A chart: its SVG (None without matplotlib), what it shows in words, and the line beneath it."""

    svg: Markup | None
    alt: str
    caption: str


def over_steps(
    column: tuple[Sequence[float], Sequence[float]],
    label: str,
    alt: str,
    smooth: int = 0,
    marks: Sequence[tuple[int, str]] = (),
    from_zero: bool = False,
) -> Chart:
    """A logged number over the optimizer steps, with gaps for NaN.

    ``smooth`` adds the mean of that many neighbouring logs; ``marks`` are (step, what begins there).
    """

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        steps, values = column
        # A dot for each log: between two gaps there is no line.
        dots = {"marker": "o" if len(values) <= 200 else "", "markersize": 4 if len(values) <= 12 else 1.5}
        if smooth:
            axes.plot(steps, values, color=_BEFORE, linewidth=0.8, label="as logged", **dots)
            means = running_mean(values, smooth)
            axes.plot(steps, means, color=_AFTER, label=f"mean of {smooth} neighbouring logs")
        else:
            axes.plot(steps, values, color=_AFTER, **dots)
        for step, what in marks:
            axes.axvline(step, color=_SOFT, linewidth=1, linestyle=(0, (4, 4)), label=what)
        if from_zero:
            axes.set_ylim(bottom=0)
        axes.locator_params(axis="y", nbins=5)
        axes.locator_params(axis="x", nbins=5, integer=True)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(False, axis="x")
        axes.set(title=_cut(label), xlabel="step")
        if smooth or marks:
            figure.legend(loc="outside lower left", ncols=2)

    return _chart(draw, alt, f"{label} over the optimizer steps.", 250)


def dumbbells(changes: Sequence[Change], what: str) -> Chart:
    """Both scores of each change in per cent, joined by a line."""

    def draw(figure: Any) -> None:
        axes = _rows(figure, changes, "%")
        for row, change in enumerate(changes):
            names = ("before", "after") if row == 0 else (None, None)  # in the legend, once
            # The dot is drawn over the ring: equal scores show as a dot in a ring.
            ring = {"markersize": 11, "markeredgewidth": 2, "markerfacecolor": COLOURS["paper"]}
            axes.plot([change.before, change.after], [row, row], color=_BEFORE, linewidth=2)
            axes.plot(change.before, row, "o", color=_BEFORE, label=names[0], **ring)
            axes.plot(change.after, row, "o", color=_AFTER, label=names[1])
        axes.set_xlim(-3, 103)
        figure.legend(loc="outside lower left", ncols=2)

    alt = f"{what} before and after, in per cent: {_listed(changes)}."
    return _chart(draw, alt, f"{what}, before and after.", _height(changes) + 24)


def differences(changes: Sequence[Change], what: str) -> Chart:
    """The difference of each change with its interval, and a line at zero."""

    def draw(figure: Any) -> None:
        axes = _rows(figure, changes, "points")
        axes.axvline(0, color=_SOFT, linewidth=1)
        for row, change in enumerate(changes):
            axes.plot(change.interval, [row, row], color=_TONES[change.tone], linewidth=2)
            axes.plot(change.difference, row, "o", markersize=8, color=_TONES[change.tone])

    listed = "; ".join(f"{change.label} {points(change.difference or 0)}" for change in changes)
    alt = f"Difference of {what}, after minus before, in points: {listed}."
    caption = f"Differences of {what} with their paired {level(changes[0].confidence)} bootstrap intervals."
    caption += " Grey: no difference shown. Blue: higher after. Orange: lower after."
    return _chart(draw, alt, caption, _height(changes))


def radar(changes: Sequence[Change]) -> Chart:
    """Both scores of each change on a spoke, from 0 % at the centre to 100 % at the rim."""

    def draw(figure: Any) -> None:
        axes = figure.subplots(subplot_kw={"projection": "polar"})
        angles = [2 * math.pi * n / len(changes) for n in range(len(changes))]
        axes.set(theta_offset=math.pi / 2, theta_direction=-1, ylim=(0, 100))
        labels = [textwrap.fill(change.label, 14, break_long_words=False) for change in changes]
        axes.set_xticks(angles, labels, fontsize=10)
        axes.set_yticks([25, 50, 75, 100], ["", "50", "", "100"], fontsize=9)
        axes.spines["polar"].set_visible(False)
        axes.tick_params(axis="x", pad=15)
        for name, line in (("before", (0, (4, 2))), ("after", "-")):
            values = [getattr(change, name) for change in changes]
            closed = [*angles, angles[0]], [*values, values[0]]
            axes.plot(*closed, color=COLOURS[name], linestyle=line, label=name)
            axes.fill(*closed, color=COLOURS[name], alpha=0.12)
        figure.legend(loc="outside lower left", ncols=2)

    alt = f"Radar plot of the accuracy of each pattern before and after, in per cent: {_listed(changes)}."
    caption = (
        "Accuracy of each pattern in per cent. The area depends on the order of the patterns, so it measures "
        "nothing: read the spokes, or the chart beside."
    )
    return _chart(draw, alt, caption, 400)


def histogram(values: Sequence[float], x_label: str, y_label: str, alt: str, caption: str) -> Chart:
    """How many values fall into each of at most 24 equal bins."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        low, high = min(values), max(values)
        margin = max(1e-6 - (high - low), 0.0) / 2  # bins of equal values need a width
        bins = min(24, max(3, math.isqrt(len(values)) * 2))
        axes.hist(values, bins, range=(low - margin, high + margin), color=_AFTER, rwidth=0.9)
        axes.grid(False, axis="x")
        axes.set(title=y_label, xlabel=x_label)
        axes.locator_params(nbins=5)

    return _chart(draw, alt, caption, 230)


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean of each value and its neighbours, ``width`` of them (fewer at the ends), finite ones only.

    >>> running_mean([1.0, 2.0, math.nan, 6.0], 3)
    [1.5, 1.5, 4.0, 6.0]
    """
    padded = np.pad(np.asarray(values, float), (width // 2, (width - 1) // 2), constant_values=math.nan)
    near = np.lib.stride_tricks.sliding_window_view(padded, width)
    means: list[float] = np.ma.masked_invalid(near).mean(axis=1).filled(math.nan).tolist()
    return means


def _chart(draw: Callable[[Any], None], alt: str, caption: str, height: float) -> Chart:
    try:
        style = require("matplotlib.style", extra="plot")
        figures = require("matplotlib.figure", extra="plot")
    except DependencyError:
        return Chart(None, alt, caption)
    svg = io.StringIO()
    # The salt keeps the ids of the charts of one page apart.
    with style.context(["default", _STYLE, {"svg.hashsalt": alt}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has other fonts
        figure = figures.Figure(figsize=(_WIDTH / 72, height / 72), layout="constrained")
        draw(figure)
        figure.savefig(svg, format="svg")
    return Chart(Markup(_themed(svg.getvalue())), alt, caption)


def _themed(svg: str) -> str:
    """matplotlib's file as an element of the page: without header and metadata, colours as variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", r"<svg \1>", svg, count=1)
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg


def _rows(figure: Any, changes: Sequence[Change], unit: str) -> Any:
    """Axes with one row per change: its label, and room for the marks beneath."""
    axes = figure.subplots()
    axes.set(ylim=(len(changes) - 0.6, -0.9), yticks=[], xlabel=unit)
    axes.grid(False, axis="y")
    axes.locator_params(axis="x", nbins=6)
    for row, change in enumerate(changes):
        axes.text(0, row - 0.38, _cut(change.label), transform=axes.get_yaxis_transform(), va="center")
    return axes


def _height(changes: Sequence[Change]) -> float:
    return 44 * (len(changes) + 0.3) + 48


def _listed(changes: Sequence[Change]) -> str:
    return "; ".join(f"{change.label} {change.before:.1f} and {change.after:.1f}" for change in changes)


def _cut(label: str) -> str:
    return label if len(label) <= _LETTERS else f"{label[: _LETTERS - 1]}…"
