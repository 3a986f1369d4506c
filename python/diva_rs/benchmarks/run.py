"""One run of the benchmark: the rows that are asked for, as one record for a line of JSON."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diva_rs.benchmarks import steps
from diva_rs.benchmarks.machine import stamp
from diva_rs.benchmarks.models import Models, quiet
from diva_rs.benchmarks.sizes import find
from diva_rs.checkpoint import make_folder, write_text
from diva_rs.errors import ConfigError, DataError
from diva_rs.recipes.kinds import hint

FORMAT = "diva-rs bench 1"
LINES, PAGE = "bench.jsonl", "bench.md"


@dataclass(frozen=True)
class Options:
    """What a run does."""

    rounds: int = 5
    compile: bool = True  # whether torch.compile is tried for plain PyTorch
    device: str = "cpu"


def _step(models: Models, options: Options) -> dict[str, Any]:
    return steps.steps(models, options.rounds, options.compile)


def _peak(models: Models, options: Options) -> dict[str, Any]:
    return steps.peak(models, (64,) if models.size.name == "tiny" else (1024, 2048, 4096))


ROWS: dict[str, Callable[[Models, Options], dict[str, Any]]] = {
    "step": _step,  # official and best plain PyTorch against ours, without and with cached latents
    "peak": _peak,  # the machine's matrix products, and the FLOPs of a step
}


def run(
    size: str, precision: str, rows: Sequence[str] = tuple(ROWS), options: Options | None = None
) -> dict[str, Any]:
    """Measure the rows of one size in one precision, "fp32" or "bf16".

    Raises:
        ConfigError: an unknown size, precision or row.

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
        "rows": {},
    }
    with quiet():
        models = Models(chosen, precision, options.device)
        for row in rows:
            record["rows"][row] = ROWS[row](models, options)
    return record


def append(record: dict[str, Any], folder: str | os.PathLike[str]) -> Path:
    """Add a record to ``bench.jsonl`` in ``folder`` and write its page, ``bench.md``, anew.

    Raises:
        DataError: what is there is no list of such records.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     append(run("tiny", "fp32", rows=[]), root).name
    'bench.md'
    """
    from diva_rs.benchmarks.table import page

    place = make_folder(folder)
    records = [*read(place), record]
    write_text(place / LINES, "".join(json.dumps(r) + "\n" for r in records))
    write_text(place / PAGE, page(records))
    return place / PAGE


def read(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records in ``folder``, oldest first; none where there is no file.

    Raises:
        DataError: a line that is no record; names it.
    """
    path = Path(folder) / LINES
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            known = record["format"] == FORMAT
        except (ValueError, KeyError, TypeError) as err:
            raise DataError(f"{path}, line {number}: it is no record of a benchmark") from err
        if not known:
            raise DataError(f"{path}, line {number}: its format is {record['format']!r}, not {FORMAT!r}")
        records.append(record)
    return records
