"""One run of the benchmark: the chosen rows as one record, written as a line of JSON."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from diva_rs._base.files import make_folder, read_text, write_text
from diva_rs._base.settings import hint
from diva_rs.errors import ConfigError, DataError
from lab.benchmarks import kernels, steps
from lab.benchmarks.cuda import channels_last, tf32
from lab.benchmarks.growth import growth
from lab.benchmarks.launches import launches
from lab.benchmarks.machine import stamp
from lab.benchmarks.memory import memory
from lab.benchmarks.models import Models, quiet
from lab.benchmarks.optimizer import optimizer
from lab.benchmarks.plot import figure, svg
from lab.benchmarks.products import products
from lab.benchmarks.ranks import ranks
from lab.benchmarks.reader import reader
from lab.benchmarks.sizes import Size, find
from lab.benchmarks.table import page
from lab.benchmarks.targets import targets

FORMAT = "diva-rs bench 1"
LINES, PAGE, PICTURE = "bench.jsonl", "bench.md", "bench.svg"


@dataclass(frozen=True)
class Options:
    """How a run measures."""

    rounds: int = 5
    compile: bool = True  # whether torch.compile is tried for plain PyTorch
    device: str = "cpu"
    graph: bool = False  # a CUDA graph of the step; see `lab.benchmarks.cuda`
    channels_last: bool = False
    tf32: bool = False

    def named(self) -> list[str]:
        """The names of the CUDA options that are set."""
        return [name for name in ("graph", "channels_last", "tf32") if getattr(self, name)]


@dataclass(frozen=True)
class _Bench:
    """The models and options that the rows of one record share."""

    size: Size
    precision: str
    options: Options

    @cached_property
    def models(self) -> Models:
        models = Models(self.size, self.precision, self.options.device)
        if self.options.channels_last:
            channels_last(models)
        return models

    @property
    def tiny(self) -> bool:
        return self.size.name == "tiny"


def _step(bench: _Bench) -> dict[str, Any]:
    options = bench.options
    return steps.steps(bench.models, options.rounds, options.compile, options.graph)


def _peak(bench: _Bench) -> dict[str, Any]:
    return steps.peak(bench.models, (64,) if bench.tiny else (1024, 2048, 4096))


def _memory(bench: _Bench) -> dict[str, Any]:
    return memory(bench.size.name, bench.precision, bench.options.device)


def _growth(bench: _Bench) -> dict[str, Any]:
    # The official way takes long for eight draws at the larger sizes, and it grows like plain PyTorch.
    large = bench.size.name in ("half", "published")
    return growth(
        bench.models, bench.options.rounds, ("plain", "ours") if large else ("official", "plain", "ours")
    )


def _recap(bench: _Bench) -> dict[str, Any]:
    options = bench.options
    if bench.tiny:
        return kernels.recap(options.rounds, options.device, kernels.TINY, batch=2)
    return kernels.recap(options.rounds, options.device)


def _draws(bench: _Bench) -> dict[str, Any]:
    return kernels.draws(bench.options.rounds, batch=2 if bench.tiny else 64)


def _ranks(bench: _Bench) -> dict[str, Any]:
    return ranks(bench.size.name, bench.options.rounds, turns=1 if bench.tiny else 3)


def _launches(bench: _Bench) -> dict[str, Any]:
    return launches(bench.size, bench.precision)


def _products(bench: _Bench) -> dict[str, Any]:
    return products(bench.models, bench.options.rounds)


def _optimizer(bench: _Bench) -> dict[str, Any]:
    return optimizer(bench.size, bench.options.rounds, bench.options.device)


def _reader(bench: _Bench) -> dict[str, Any]:
    small = {"images": 2, "batch": 2, "sizes": ((64, 48),), "rows": 80} if bench.tiny else {}
    return reader(bench.options.rounds, **small)  # type: ignore[arg-type]


ROWS: dict[str, Callable[[_Bench], dict[str, Any]]] = {
    "step": _step,  # official and best plain PyTorch against ours, without and with cached latents
    "peak": _peak,  # the machine's matrix products, and the FLOPs of a step
    "memory": _memory,  # of each contestant, in a separate process
    "growth": _growth,  # with draws, batch and resolution, and the vision tower's part
    "recap": _recap,  # recap and assembly against plain indexing
    "launches": _launches,  # operations that launch a kernel on a GPU, casts and bytes, without a GPU
    "products": _products,  # bf16 matrices multiplied in bf16 and in float32, on a CPU
    "optimizer": _optimizer,  # AdamW's update of the vision tower against torch's, in float32
    "draws": _draws,  # keyed draws against torch.randn and randint
    "reader": _reader,  # images/s of one core, and the latent cache; the same for all sizes and precisions
    "ranks": _ranks,  # two gloo ranks against one process of two threads (in float32, on CPU)
}


DEFAULT = tuple(name for name in ROWS if name != "reader")


def run(
    size: str,
    precision: str,
    rows: Sequence[str] = DEFAULT,
    options: Options | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure the rows of one size in one precision, "fp32" or "bf16"; ``tell`` gets a line before each row.

    >>> run("tiny", "fp32", rows=[])["size"]
    'tiny'
    """
    options = options or Options()
    if precision not in ("fp32", "bf16"):
        raise ConfigError(f"precision={precision!r}: 'fp32' or 'bf16' is needed")
    for row in rows:
        if row not in ROWS:
            raise ConfigError(f"row {row!r} is unknown{hint(row, ROWS) or ': one of ' + ', '.join(ROWS)}")
    chosen = find(size)
    record: dict[str, Any] = {
        "format": FORMAT,
        **stamp(torch.device(options.device)),
        "size": size,
        "what": chosen.describe(),
        "precision": precision,
        "options": options.named(),
        "rows": {},
    }
    bench = _Bench(chosen, precision, options)
    with quiet(), tf32(options.tf32):
        # First the rows that start processes, while this one holds no models.
        for row in sorted(rows, key=lambda row: row not in ("memory", "ranks")):
            tell(f"{size}, {precision}: {row}")
            record["rows"][row] = ROWS[row](bench)
    return record


def append(record: dict[str, Any], folder: str | os.PathLike[str]) -> Path:
    """Add a record to ``bench.jsonl`` in ``folder``, and rewrite the page and (with matplotlib) the picture.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     append(run("tiny", "fp32", rows=[]), root).name
    'bench.md'
    """
    place = make_folder(folder)
    records = [*read(place), record]
    write_text(place / LINES, "".join(json.dumps(r) + "\n" for r in records))
    write_text(place / PAGE, page(records, targets(records)))
    if find_spec("matplotlib") is not None:
        picture = figure(records)
        if picture is not None:
            write_text(place / PICTURE, svg(picture))
    return place / PAGE


def read(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records in ``folder``, oldest first; a damaged line is a DataError that names it."""
    path = Path(folder) / LINES
    if not path.exists():
        return []
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as err:
        raise DataError(f"{path} cannot be read: {err}") from err
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            known = record["format"] == FORMAT
        except (ValueError, KeyError, TypeError) as err:
            raise DataError(f"{path}, line {number}: not a record of a benchmark") from err
        if not known:
            raise DataError(f"{path}, line {number}: its format is {record['format']!r}, not {FORMAT!r}")
        records.append(record)
    return records
