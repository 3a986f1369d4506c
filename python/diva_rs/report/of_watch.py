"""The section about what was measured while training, where `post_train` was given ``evaluate``."""

import math
from collections.abc import Mapping
from typing import Any

from diva_rs.report.blocks import Block, Columns, Figure, Section, Table, Text
from diva_rs.report.curves import Curve, curves
from diva_rs.report.run import Run, number
from diva_rs.report.words import figure

_MOMENTS = {"before": "Before", "best": "Kept as best", "after": "Last"}


def watch_sections(run: Run) -> tuple[Section, ...]:
    """One section, or none where nothing was measured while training.

    >>> from diva_rs.report.run import read_run
    >>> watch_sections(read_run(result))
    ()
    """
    found = run.report.get("evaluation")
    if not isinstance(found, Mapping):
        return ()
    rows = {name: found[name] for name in _MOMENTS if isinstance(found.get(name), Mapping)}
    scores = list(dict.fromkeys(name for row in rows.values() for name in row if name != "step"))
    if not scores:
        return ()
    header = ("Score", *(f"{_MOMENTS[name]}, step {figure(row.get('step'))}" for name, row in rows.items()))
    cells = tuple((score, *(figure(row.get(score)) for row in rows.values())) for score in scores)
    table = Table("Scores before, during and after the run", header, cells, frozenset(range(1, len(header))))
    blocks: list[Block] = []
    if stopped := run.report.get("stopped"):
        blocks.append(Text(f"The guard ended the run: {stopped}."))
    size = (640, 240) if len(scores) == 1 else (400, 220)
    charts = tuple(
        chart for score in scores if (chart := _chart(run, score, rows.get("before", {}), size)) is not None
    )
    return (Section("Measured while training", "measured", (*blocks, table, *_columns(charts))),)


def _columns(charts: tuple[Figure, ...]) -> tuple[Columns, ...]:
    return (Columns(charts),) if charts else ()


def _chart(run: Run, score: str, before: Mapping[str, Any], size: tuple[int, int]) -> Figure | None:
    points = [(step, value) for step, value in zip(*run.column(score), strict=True) if math.isfinite(value)]
    start, step = number(before.get(score)), number(before.get("step", 0))
    if math.isfinite(start) and math.isfinite(step):
        points.insert(0, (step, start))
    if len(points) < 2:
        return None
    steps, values = map(list, zip(*points, strict=True))
    first, last = figure(values[0]), figure(values[-1])
    alt = f"{score} over the steps: {first} at step {figure(steps[0])}, {last} at the last."
    svg = curves([Curve("smooth", steps, values)], "step", score, alt, size)
    return Figure(svg, alt, f"{score} over the optimizer steps.")
