"""What every evaluation gives back: a value that turns into a dict, a JSON file and a table in CSV."""

import csv
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar

from diva_rs._base.files import as_path, write_json, write_text

_MADE: ContextVar[list["Result"] | None] = ContextVar("results", default=None)


class Result:
    """The base of the results, which are frozen dataclasses."""

    computed: ClassVar[tuple[str, ...]] = ()  # scores that `to_dict` holds beside the fields

    def __post_init__(self) -> None:
        made = _MADE.get()
        if made is not None:
            made.append(self)

    def to_dict(self) -> dict[str, Any]:
        """The fields and what is computed of them, for JSON; outcomes as one string of 0 and 1."""
        content = {name: _plain(getattr(self, name)) for name in (*self.computed, *vars(self))}
        if "outcomes" in content:
            content["outcomes"] = "".join("01"[right] for right in content["outcomes"])
        return content

    def records(self) -> list[dict[str, Any]]:
        """The lines of the CSV file, each as column -> value."""
        cells = (str, int, float)
        return [{name: value for name, value in self.to_dict().items() if isinstance(value, cells)}]

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write `to_dict` atomically; returns the path. Raises DataError if it cannot be written."""
        file = as_path(path)
        write_json(file, self.to_dict())
        return file

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write `records` atomically; returns the path. Raises DataError if it cannot be written."""
        file, records, text = as_path(path), self.records(), io.StringIO()
        table = csv.DictWriter(text, list(records[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(records)
        write_text(file, text.getvalue())
        return file


def _plain(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


@contextmanager
def results_made() -> Iterator[list[Result]]:
    """The results that are made inside, also by a function that returns only a number of one."""
    made: list[Result] = []
    token = _MADE.set(made)
    try:
        yield made
    finally:
        _MADE.reset(token)
