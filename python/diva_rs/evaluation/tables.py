"""Pairs in tables: parquet files, or a folder that the library ``datasets`` saved, read by pyarrow."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diva_rs._base.optional import one_line, require
from diva_rs.errors import DataError, a_type
from diva_rs.evaluation.items import Benchmark, Picture, pair_tasks
from diva_rs.evaluation.reading import ImageFolders, pair_item, text_field

_SHARD = re.compile(r"(.*?)-?(\d{5})-of-(\d{5})")


def columns(root: Path) -> set[str]:
    """The columns of the table in a folder; none if there is no table."""
    files = _files(root)
    return set(_schema(files[0])) if files else set()


def pairs_of_table(name: str, root: Path, images: Path | None, category: tuple[str, ...]) -> Benchmark:
    """The pairs of the table in a folder: its images are bytes, or paths below the folder."""
    found = ImageFolders([root, root / "images", root / "data"] if images is None else [images])
    items = []
    for where, row in _rows(root):
        pictures = tuple(_picture(row.get(f"image_{n}"), f"{where}, image_{n}", found) for n in (0, 1))
        number = row.get("id")
        title = where.rpartition(" ")[2] if number is None else str(number)
        items.append(
            pair_item(row, title, where, (pictures[0], pictures[1]), text_field(row, category, where))
        )
    tasks = pair_tasks(items)
    return Benchmark(name, tuple(tasks[rule] for rule in ("group", "text", "image")), str(root))


def _files(root: Path) -> list[Path]:
    """The files of the test split, or of the only split, in order."""
    for place in (root / "test", root, root / "data"):
        found = sorted([*place.glob("*.parquet"), *place.glob("*.arrow")]) if place.is_dir() else []
        tests = [file for file in found if file.name.startswith("test")]
        if found:
            files = tests or found
            _check_shards(files)
            return files
    return []


def _check_shards(files: list[Path]) -> None:
    """Raise DataError if a shard of a table is missing: its rows would be missing in the score."""
    for file in files:
        shard = _SHARD.match(file.name)
        if shard is None:
            continue
        there = {(m[1], int(m[2])) for other in files if (m := _SHARD.match(other.name))}
        for number in range(int(shard[3])):
            if (shard[1], number) not in there:
                raise DataError(f"{file.parent}: shard {number} of {shard[3]} of {file.name} is missing")


def _schema(file: Path) -> list[str]:
    with _reading(file):
        if file.suffix == ".parquet":
            return list(require("pyarrow.parquet", extra="eval").read_schema(file).names)
        with require("pyarrow", extra="eval").memory_map(str(file)) as source:
            return list(require("pyarrow.ipc", extra="eval").open_stream(source).schema.names)


def _rows(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    for file in _files(root):
        with _reading(file):
            if file.suffix == ".parquet":
                table = require("pyarrow.parquet", extra="eval").read_table(file)
            else:
                with require("pyarrow", extra="eval").memory_map(str(file)) as source:
                    table = require("pyarrow.ipc", extra="eval").open_stream(source).read_all()
        for batch in table.to_batches():
            for row in batch.to_pylist():
                yield f"{file}, row {number}", row
                number += 1


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turns pyarrow's errors into a DataError that names the file."""
    arrow = require("pyarrow", extra="eval")
    try:
        yield
    except (arrow.ArrowException, OSError) as err:
        raise DataError(f"{file} cannot be read: {one_line(err)}") from err


def _picture(cell: Any, where: str, found: ImageFolders) -> Picture:
    path = cell.get("path") if isinstance(cell, dict) else cell
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if isinstance(content, bytes) and content:
        return Picture.of_bytes(content, where)
    if isinstance(path, str) and path:
        return found.find(path, where)
    raise DataError(f"{where} is {a_type(cell)} without an image: bytes or a path are expected")
