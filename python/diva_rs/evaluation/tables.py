"""Rows of tables: parquet files, or a folder that the library ``datasets`` saved, read by pyarrow."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diva_rs._base.files import is_pointer
from diva_rs._base.optional import one_line, require
from diva_rs.errors import DataError

_POINTER = "it is a pointer of Git LFS, not the table: run git lfs pull in its folder"
_SPLITS = ("train", "val", "dev")  # beginnings of names
_SHARD = re.compile(r"(.*?)-?(\d{5})-of-(\d{5})")


def columns(root: Path) -> set[str]:
    """The columns of the table in a folder; none if there is no table."""
    for file in _files(root):
        with _opened(file) as (schema, _):
            return set(schema.names)
    return set()


def rows_of(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of the table in a folder."""
    number = 0
    for file in _files(root):
        with _opened(file) as (_, batches):
            for row in (row for batch in batches for row in batch.to_pylist()):
                yield f"{file}, row {number}", row
                number += 1


def _files(root: Path) -> list[Path]:
    """The files of the test split, or of the only split, in order.

    The library ``datasets`` leaves ``cache-*.arrow`` beside a table: the rows that a filter or a map gave.
    """
    for place in (root / "test", root, root / "data"):
        found = sorted([*place.glob("*.parquet"), *place.glob("*.arrow")]) if place.is_dir() else []
        found = [file for file in found if not file.name.startswith("cache-")]
        if found:
            files = [file for file in found if file.name.startswith("test")] or found
            _check_shards(files)
            splits = [split for split in _SPLITS if any(file.name.startswith(split) for file in files)]
            if len(splits) > 1:
                raise DataError(f"{place} holds files of {' and '.join(splits)}, and none of test: keep one")
            return files
    return []


def _check_shards(files: list[Path]) -> None:
    """Raise DataError if a shard of a table is missing: its rows would be missing in the score."""
    shards = {file: shard for file in files if (shard := _SHARD.match(file.name))}
    there = {(shard[1], int(shard[2])) for shard in shards.values()}
    for file, shard in shards.items():
        for number in range(int(shard[3])):
            if (shard[1], number) not in there:
                raise DataError(f"{file.parent}: shard {number} of {shard[3]} of {file.name} is missing")


@contextmanager
def _opened(file: Path) -> Iterator[tuple[Any, Any]]:
    """The schema and the batches of a file; pyarrow's errors become a DataError that names it."""
    arrow = require("pyarrow", extra="eval")
    try:
        if file.suffix == ".parquet":
            with require("pyarrow.parquet", extra="eval").ParquetFile(file) as table:
                yield table.schema_arrow, table.iter_batches()
        else:
            with arrow.memory_map(str(file)) as source:
                stream = require("pyarrow.ipc", extra="eval").open_stream(source)
                yield stream.schema, stream
    except (arrow.ArrowException, OSError) as err:
        raise DataError(f"{file} cannot be read: {_POINTER if is_pointer(file) else one_line(err)}") from err
