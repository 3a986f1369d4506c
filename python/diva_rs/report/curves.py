"""Curves over the steps of a run, as SVG whose colours and letter sizes the page's style decides."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from diva_rs.report.axes import Scale, span, tick_labels, ticks
from diva_rs.report.markup import Markup, element, join

_MOST = 400  # points of a line: more cannot be told apart at the width of a page


@dataclass(frozen=True)
class Curve:
    """One line: its style (a class of the page's style sheet) and its points, NaN where there is a gap."""

    style: str
    xs: Sequence[float]
    ys: Sequence[float]


def curves(
    lines: Sequence[Curve],
    x_label: str,
    y_label: str,
    alt: str,
    size: tuple[int, int] = (640, 300),
    from_zero: bool = False,
    mark: float | None = None,
) -> Markup:
    """Lines over a common x axis.

    Args:
        lines: drawn in this order, the last one on top.
        x_label, y_label: the axes' names.
        alt: the chart's accessible name.
        size: of the drawing, in its own units.
        from_zero: whether the y axis begins at 0.
        mark: an x at which a vertical line is drawn.

    >>> svg = curves([Curve("raw", [1, 2], [0.5, float("nan")])], "step", "loss", "one point")
    >>> svg.count("<circle"), svg.count("<path")
    (1, 0)
    """
    width, height = size
    xs = [x for line in lines for x in line.xs]
    low, high = span([y for line in lines for y in line.ys])
    x_scale = Scale(*_range(xs), start=74.0, end=width - 14.0)
    y_scale = Scale(min(0.0, low) if from_zero else low, high, start=height - 56.0, end=10.0)
    parts = [grid(x_scale, y_scale, x_label, y_label, whole=True)]
    if mark is not None:
        at = x_scale(mark)
        parts.append(element("line", class_="mark", x1=at, x2=at, y1=y_scale.end, y2=y_scale.start))
    for line in lines:
        parts += _line(line, x_scale, y_scale)
    return element(
        "svg",
        element("title", alt),
        *parts,
        viewBox=f"0 0 {width} {height}",
        role="img",
        class_="chart" if width > 400 else "chart small",
    )


def thinned(xs: Sequence[float], ys: Sequence[float], most: int = _MOST) -> tuple[list[float], list[float]]:
    """At most ``most`` points that keep the line's outline: the least and the greatest y of each stretch.

    >>> thinned(range(8), [0, 9, 1, 2, 3, -5, 4, 4], most=4)
    ([0, 1, 5, 6], [0, 9, -5, 4])
    """
    if len(xs) <= most:
        return list(xs), list(ys)
    kept: list[int] = []
    stretches = most // 2
    for n in range(stretches):
        part = range(n * len(xs) // stretches, (n + 1) * len(xs) // stretches)
        finite = [i for i in part if math.isfinite(ys[i])]
        kept += (
            sorted({min(finite, key=lambda i: ys[i]), max(finite, key=lambda i: ys[i])})
            if finite
            else part[:1]
        )
    return [xs[i] for i in kept], [ys[i] for i in kept]


def _range(xs: Sequence[float]) -> tuple[float, float]:
    low, high = min(xs, default=0.0), max(xs, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def grid(x_scale: Scale, y_scale: Scale, x_label: str, y_label: str, whole: bool = False) -> Markup:
    """Horizontal lines, ticks and names of two axes; ``whole`` leaves out ticks of x between whole numbers.

    >>> grid(Scale(0, 2, 60, 300), Scale(0, 1, 200, 10), "step", "loss", whole=True).count("<text")
    8
    """
    parts: list[Markup] = []
    at = ticks(y_scale.low, y_scale.high, most=5)
    for value, label in zip(at, tick_labels(at), strict=True):
        y = y_scale(value)
        parts.append(element("line", class_="grid", x1=x_scale.start, x2=x_scale.end, y1=y, y2=y))
        parts.append(
            element("text", label, class_="tick", x=x_scale.start - 8, y=y, dy="0.35em", text_anchor="end")
        )
    at = ticks(x_scale.low, x_scale.high, most=5)
    if whole:
        at = [value for value in at if value == round(value)]
    for value, label in zip(at, [f"{x:,.0f}" for x in at] if whole else tick_labels(at), strict=True):
        x = x_scale(value)
        anchor = "end" if x > x_scale.end - 8 else "middle"
        parts.append(
            element("text", label, class_="tick", x=x, y=y_scale.start, dy="1.35em", text_anchor=anchor)
        )
    middle = (x_scale.start + x_scale.end) / 2
    parts.append(
        element("line", class_="axis", x1=x_scale.start, x2=x_scale.end, y1=y_scale.start, y2=y_scale.start)
    )
    parts.append(
        element("text", x_label, class_="name", x=middle, y=y_scale.start + 50, text_anchor="middle")
    )
    centre = (y_scale.start + y_scale.end) / 2
    turned = f"translate(13 {centre:.1f}) rotate(-90)"
    parts.append(element("text", y_label, class_="name", transform=turned, text_anchor="middle"))
    return join(*parts)


def _line(line: Curve, x_scale: Scale, y_scale: Scale) -> list[Markup]:
    """A path for each stretch without a gap; a single point, or few, as dots, which a line would not show."""
    xs, ys = thinned(line.xs, line.ys)
    points = [(x_scale(x), y_scale(y)) if math.isfinite(y) else None for x, y in zip(xs, ys, strict=True)]
    stretches: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if point is None:
            stretches.append([])
        else:
            stretches[-1].append(point)
    parts = []
    for stretch in stretches:
        if len(stretch) > 1:
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in stretch)
            parts.append(element("path", class_=f"line {line.style}", d=path))
        if len(stretch) == 1 or len(xs) <= 12:
            parts += [element("circle", class_=f"dot {line.style}", cx=x, cy=y, r=3) for x, y in stretch]
    return parts
