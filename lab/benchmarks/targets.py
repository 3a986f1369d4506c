"""What the project aims at, and what the newest records say of it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from lab.benchmarks.table import Record, ratio, shares, table

_PLAIN, _OFFICIAL = "the best plain PyTorch", "the official way"


class Target(NamedTuple):
    """A figure of one row of one size and precision."""

    what: str
    size: str
    precision: str | None  # None: any
    rows: tuple[str, ...]  # that the record has
    figure: Callable[[Record], float]  # of its rows
    aim: float
    least: bool = True  # whether the aim is the least figure, or the largest
    form: str = "{:.2f}x"

    def newest(self, records: Sequence[Record]) -> Record | None:
        """The newest record that has the figure."""
        fits = (
            record
            for record in reversed(records)
            if record["size"] == self.size
            and self.precision in (None, record["precision"])
            and all(record["rows"].get(row) for row in self.rows)
        )
        return next(fits, None)

    def line(self, records: Sequence[Record]) -> list[str]:
        """The cells of a table."""
        aim = ("≥ " if self.least else "≤ ") + self.form.format(self.aim)
        record = self.newest(records)
        if record is None:
            return [self.what, aim, "-", "not measured", "-"]
        figure = self.figure(record["rows"])
        met = figure >= self.aim if self.least else figure <= self.aim
        return [self.what, aim, self.form.format(figure), "yes" if met else "no", record["date"]]


def _step(of: str, to: str) -> Callable[[Record], float]:
    return lambda rows: ratio(rows["step"]["contestants"], of, to)


def _share(rows: Record) -> float:
    return min(shares("ours", rows["step"]["contestants"]["ours"], rows["peak"]).values())


def _memory(rows: Record) -> float:
    return float(rows["memory"]["gib"]["ours"]["peak"] / rows["memory"]["gib"]["plain"]["peak"])


def _counted(what: str) -> Callable[[Record], float]:
    def figure(rows: Record) -> float:
        ours, plain = (rows["launches"][name]["step"][what] for name in ("ours", "plain"))
        return float(ours / plain)

    return figure


def _reader(rows: Record) -> float:
    ratios: list[float] = []
    for times in rows["reader"]["sizes"].values():
        ratios.append(min(times["torchvision"]["cpu"]) / min(times["ours, folder"]["cpu"]))
    return min(ratios)


def _recap(rows: Record) -> float:
    shapes: dict[str, Any] = rows["recap"]["shapes"]
    return min(ratio(one["contestants"], "indexed last", "ours") for one in shapes.values())


def _targets(precisions: tuple[str, ...] = ("bf16", "fp32")) -> list[Target]:
    published = [
        Target(f"step, {_OFFICIAL}", "published", "bf16", ("step",), _step("official", "ours"), 1.6),
        Target(f"step, {_PLAIN}", "published", "bf16", ("step",), _step("plain", "ours"), 1.2),
        Target(
            f"step with cached latents, {_OFFICIAL}",
            "published",
            "bf16",
            ("step",),
            _step("official", "ours, cached"),
            2.0,
        ),
        Target(
            "share of the faster arithmetic's peak",
            "published",
            "bf16",
            ("step", "peak"),
            _share,
            0.65,
            form="{:.0%}",
        ),
        Target(f"peak memory, {_PLAIN}", "published", "bf16", ("memory",), _memory, 0.9, False),
    ]
    for precision in precisions:
        for what, aim in (("launches", 0.6), ("bytes", 0.7)):
            name = "launches" if what == "launches" else "bytes of other than products"
            published.append(
                Target(
                    f"{name}, {precision}, plain PyTorch",
                    "published",
                    precision,
                    ("launches",),
                    _counted(what),
                    aim,
                    False,
                )
            )
    return [
        *published,
        Target(
            "launches of an update with AdamW and clipping",
            "published",
            None,
            ("launches",),
            lambda rows: rows["launches"]["ours"]["update"]["launches"],
            19,
            False,
            "{:.0f}",
        ),
        Target(
            "an update with AdamW, torch's fused one",
            "published",
            None,
            ("optimizer",),
            lambda rows: ratio(rows["optimizer"]["contestants"], "fused", "ours", "cpu"),
            1.0,
        ),
        Target("reader, torchvision", "microworld", None, ("reader",), _reader, 1.5),
        Target(
            f"step, microworld, fp32, {_PLAIN}", "microworld", "fp32", ("step",), _step("plain", "ours"), 1.2
        ),
        Target("recap and assembly, indexed last", "microworld", "fp32", ("recap",), _recap, 3.0),
    ]


def targets(records: Sequence[Record]) -> list[str]:
    """A table of all aims: the newest figure of each, and whether it is met.

    >>> print(targets([])[4])
    | step, the official way                        | ≥ 1.60x |     - | not measured |        - |
    """
    head = ["ours against", "aim", "found", "met", "measured"]
    told = "The aims, with the newest figure of each (at the published size where none is named):"
    return [told, "", *table(head, (target.line(records) for target in _targets()))]
