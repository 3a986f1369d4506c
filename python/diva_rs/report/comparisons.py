"""Charts of two models side by side: dumbbells, differences with their intervals, and the radar plot."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from diva_rs.report.axes import Scale, span, tick_labels, ticks
from diva_rs.report.curves import grid
from diva_rs.report.markup import Markup, element

_ROW = 44.0  # height of a row: its label above, its marks below
_WIDTH = 460
_LETTERS = 44  # of a row's label


@dataclass(frozen=True)
class Difference:
    """A row of `differences`: after - before, its interval; ``shown`` is 1 or -1 where it is called so."""

    label: str
    value: float
    low: float
    high: float
    shown: int = 0


def dumbbells(rows: Sequence[tuple[str, float, float]], alt: str, unit: str = "%") -> Markup:
    """One row per label with two marks: before (a ring) and after (a dot).

    >>> dumbbells([("Texts", 20.0, 33.3)], "Texts: 20.0 before, 33.3 after").count("<circle")
    2
    """
    values = [value for _, *pair in rows for value in pair]
    low, high = (0.0, 100.0) if unit == "%" else span(values)
    scale = Scale(low, high, 12.0, _WIDTH - 12.0)
    parts = [_frame(scale, len(rows), unit)]
    for n, (label, before, after) in enumerate(rows):
        y = n * _ROW + 34
        parts.append(_label(label, n))
        # The ring is drawn over the line, the dot over both: equal values show as a dot in a ring.
        parts.append(element("line", class_="link", x1=scale(before), x2=scale(after), y1=y, y2=y))
        parts.append(element("circle", class_="ring before", cx=scale(before), cy=y, r=6))
        parts.append(element("circle", class_="dot after", cx=scale(after), cy=y, r=4))
    return _chart(parts, len(rows), alt)


def differences(rows: Sequence[Difference], alt: str, unit: str = "points") -> Markup:
    """One row per label: the difference with its interval, and a line at zero.

    >>> differences([Difference("Average", 6.7, -1.3, 14.7)], "Average: +6.7").count('class="zero"')
    1
    """
    low, high = span([bound for row in rows for bound in (row.low, row.high, 0.0)])
    scale = Scale(low, high, 12.0, _WIDTH - 12.0)
    parts = [_frame(scale, len(rows), unit)]
    zero = scale(0.0)
    parts.append(element("line", class_="zero", x1=zero, x2=zero, y1=0, y2=len(rows) * _ROW + 4))
    for n, row in enumerate(rows):
        y = n * _ROW + 34
        tone = {1: "better", -1: "worse", 0: "plain"}[row.shown]
        parts.append(_label(row.label, n))
        parts.append(
            element("line", class_=f"whisker {tone}", x1=scale(row.low), x2=scale(row.high), y1=y, y2=y)
        )
        parts.append(element("circle", class_=f"dot {tone}", cx=scale(row.value), cy=y, r=5))
    return _chart(parts, len(rows), alt)


def radar(labels: Sequence[str], before: Sequence[float], after: Sequence[float], alt: str) -> Markup:
    """A polygon per model over one axis per label, from 0 % at the centre to 100 % at the rim.

    >>> radar(["A", "B", "C"], [10, 20, 30], [20, 20, 40], "A, B, C").count("<polygon")
    6
    """
    centre, radius = (_WIDTH / 2, 190.0), 122.0
    angles = [2 * math.pi * n / len(labels) - math.pi / 2 for n in range(len(labels))]

    def at(angle: float, share: float) -> tuple[float, float]:
        return centre[0] + share * radius * math.cos(angle), centre[1] + share * radius * math.sin(angle)

    def polygon(style: str, values: Sequence[float]) -> Markup:
        points = [at(angle, value / 100) for angle, value in zip(angles, values, strict=True)]
        return element("polygon", class_=style, points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points))

    parts = [polygon("ring-grid", [share] * len(labels)) for share in (25, 50, 75, 100)]
    for angle, label in zip(angles, labels, strict=True):
        (x, y), (text_x, text_y) = at(angle, 1.0), at(angle, 1.12)
        parts.append(element("line", class_="grid", x1=centre[0], y1=centre[1], x2=x, y2=y))
        side = "middle" if abs(text_x - centre[0]) < 30 else "start" if text_x > centre[0] else "end"
        lines = _wrapped(label)
        above = (len(lines) - 1) * (1 if math.sin(angle) < -0.9 else 0.5)
        spans = [
            element("tspan", line, x=text_x, dy=f"{0.35 - 1.1 * above:.2f}em" if n == 0 else "1.1em")
            for n, line in enumerate(lines)
        ]
        parts.append(element("text", *spans, class_="tick", x=text_x, y=text_y, text_anchor=side))
    for share in (50, 100):
        parts.append(
            element(
                "text", str(share), class_="scale", x=centre[0] + 3, y=centre[1] - share / 100 * radius + 11
            )
        )
    parts += [polygon("area before", before), polygon("area after", after)]
    title = element("title", alt)
    return element("svg", title, *parts, viewBox=f"0 0 {_WIDTH} 380", role="img", class_="chart half")


def histogram(values: Sequence[float], x_label: str, y_label: str, alt: str, most: int = 24) -> Markup:
    """How many values fall into each of up to ``most`` equal bins.

    >>> histogram([0.91, 0.92, 0.99], "cosine", "images", "three values").count("<rect")
    3
    """
    low, high = span(values, margin=0.0)
    bins = min(most, max(3, math.isqrt(len(values)) * 2))
    counts = [0] * bins
    for value in values:
        counts[min(int((value - low) / (high - low) * bins), bins - 1)] += 1
    x_scale = Scale(low, high, 60.0, _WIDTH - 14.0)
    y_scale = Scale(0.0, 1.08 * max(counts), 186.0, 10.0)
    parts = [grid(x_scale, y_scale, x_label, y_label)]
    width = (x_scale.end - x_scale.start) / bins
    for n, number in enumerate(counts):
        top = y_scale(number)
        parts.append(
            element(
                "rect",
                class_="bar",
                x=x_scale.start + n * width,
                y=top,
                width=width - 1.5,
                height=186.0 - top,
            )
        )
    title = element("title", alt)
    return element("svg", title, *parts, viewBox=f"0 0 {_WIDTH} 240", role="img", class_="chart half")


def _chart(parts: Sequence[Markup], rows: int, alt: str) -> Markup:
    view = f"0 0 {_WIDTH} {rows * _ROW + 52:.0f}"
    return element("svg", element("title", alt), *parts, viewBox=view, role="img", class_="chart half")


def _label(label: str, row: int) -> Markup:
    # What does not fit on the narrowest page is cut here; a table beside the chart has it in full.
    label = label if len(label) <= _LETTERS else f"{label[: _LETTERS - 1]}…"

    return element("text", label, class_="name", x=12, y=row * _ROW + 20)


def _frame(scale: Scale, rows: int, unit: str) -> Markup:
    bottom = rows * _ROW + 8
    at = ticks(scale.low, scale.high, most=6)
    parts = []
    for value, label in zip(at, tick_labels(at), strict=True):
        x = scale(value)
        anchor = "start" if x < 24 else "end" if x > _WIDTH - 24 else "middle"
        parts.append(element("line", class_="grid", x1=x, x2=x, y1=0, y2=bottom))
        parts.append(element("text", label, class_="tick", x=x, y=bottom + 18, text_anchor=anchor))
    parts.append(
        element(
            "text", unit, class_="name", x=(scale.start + scale.end) / 2, y=bottom + 40, text_anchor="middle"
        )
    )
    return element("g", *parts)


def _wrapped(label: str, most: int = 14) -> list[str]:
    """The words on as many lines as it takes to keep each within ``most`` letters.

    >>> _wrapped("Orientation and Direction")
    ['Orientation', 'and Direction']
    """
    lines = [""]
    for word in label.split():
        joined = f"{lines[-1]} {word}".strip()
        if len(joined) > most and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = joined
    return lines
