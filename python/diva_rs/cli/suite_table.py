"""The scores of ``diva-rs eval suite`` as JSON and as a table."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from diva_rs.cli.tables import NOT_MEASURED, by_rule


@dataclass(frozen=True)
class Row:
    """One model on one data set."""

    data: str
    model: str
    result: Any
    seconds: float
    images: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the single decisions, which have files of their own."""
        facts = ("name", "kind", "is_test_set", "root")
        scores = {
            getattr(part, "rule", "accuracy"): {
                name: getattr(part, name) for name in ("right", "asked", "interval", "per_cent", "counts")
            }
            for part in by_rule(self.result)
        }
        speed = {"seconds": self.seconds, "images_per_second": self.images / max(self.seconds, 1e-9)}
        about = {name: getattr(self.result, name) for name in facts}
        return {"data": self.data, **about, "scores": scores, **speed}


def content(rows: list[Row], failed: list[tuple[str, str]]) -> dict[str, Any]:
    """The suite for JSON: the scores of each model, and what failed."""
    models: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        models.setdefault(row.model, []).append(row.to_dict())
    return {"models": models, "failed": dict(failed), "retention": _kept(rows)}


def _kept(rows: list[Row]) -> dict[str, str]:
    """The retention of each model in words; the models without one are left out."""
    kept = [row for row in rows if row.result.kind == "retention"]
    return {
        row.model: f"{row.result.right} of {row.result.asked}, {row.result.per_cent:.1f} %" for row in kept
    }


def table(rows: list[Row]) -> Iterator[str]:
    """One line per data set, rule and model: counts first, the retention beside each score of detail."""
    kept, labels = _kept(rows), _labels([row.model for row in rows])
    header = ("score", "model", "right of asked", "95% interval", "%", "retention", "seconds", "images/s")
    lines = [header]
    for name in dict.fromkeys(row.data for row in rows):
        for row in (row for row in rows if row.data == name):
            speed = (f"{row.seconds:.1f}", f"{row.images / max(row.seconds, 1e-9):.0f}")
            for part in by_rule(row.result):
                low, high = part.interval
                beside = kept.get(row.model, NOT_MEASURED) if part.kind == "detail" else ""
                counts = (f"{part.right} of {part.asked}", f"[{low:.1f}, {high:.1f}]", f"{part.per_cent:.1f}")
                lines.append((part.title, labels[row.model], *counts, beside, *speed))
                speed = ("", "")
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            f"{cell:>{width}}" if place in (2, 3, 4, 6, 7) else f"{cell:<{width}}"
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _labels(specs: list[str]) -> dict[str, str]:
    """The models by what their names do not share: the folders of several runs.

    >>> _labels(["B-32:runs/a/clip.safetensors", "B-32:runs/b/clip.safetensors"])
    {'B-32:runs/a/clip.safetensors': 'a', 'B-32:runs/b/clip.safetensors': 'b'}
    """
    parts = {spec: re.split("[:/]", spec) for spec in specs}
    if len(parts) < 2:
        return {spec: spec for spec in specs}
    start, end = (
        sum(1 for _ in takewhile(lambda same: len({*same}) == 1, zip(*rows, strict=False)))
        for rows in ([*parts.values()], [part[::-1] for part in parts.values()])
    )
    return {spec: "/".join(part[start : len(part) - end]) or spec for spec, part in parts.items()}
