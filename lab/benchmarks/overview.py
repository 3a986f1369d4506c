"""All sizes in one go, within some minutes of two quiet cores."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from lab.benchmarks.run import Options, run


class Part(NamedTuple):
    """The rows of one record, and the minutes that they take."""

    size: str
    precision: str
    rows: tuple[str, ...]
    rounds: int
    minutes: float
    compiles: float = 0.0  # minutes more with torch.compile; 0: it is not tried


PARTS = (
    Part("published", "bf16", ("memory", "step", "peak", "launches", "optimizer"), 2, 12),
    Part("published", "fp32", ("launches",), 1, 1),
    Part("microworld", "fp32", ("reader",), 3, 2),
    Part("half", "bf16", ("memory", "step", "peak", "growth"), 2, 3),
    Part("microworld", "fp32", ("memory", "step", "peak", "recap", "ranks"), 5, 1, 3),
    Part("microworld", "bf16", ("memory", "step", "peak", "products"), 5, 1, 3),
    Part("microworld", "fp32", ("growth", "draws"), 3, 1),
)


def overview(
    minutes: float, parts: tuple[Part, ...] = PARTS, tell: Callable[[str], None] = lambda text: None
) -> Iterator[dict[str, Any]]:
    """A record of each part, the most important first.

    For lack of time first torch.compile is left out, then a part. ``tell`` gets a line about each row, and
    about what is left out.

    >>> parts = Part("tiny", "fp32", (), 1, 0), Part("tiny", "bf16", (), 1, 90)
    >>> [record["precision"] for record in overview(60, parts)]
    ['fp32']
    """
    started = time.perf_counter()
    for part in parts:
        left = minutes - (time.perf_counter() - started) / 60
        if part.minutes > left:
            tell(f"{part.size}, {part.precision} is left out: {part.minutes} minutes, {left:.1f} are left")
            continue
        compiles = 0 < part.compiles <= left - part.minutes
        yield run(part.size, part.precision, part.rows, Options(part.rounds, compiles), tell)
