"""What the tests at published size measure, kept for `lab/published_sizes.py`."""

import json
import os
from pathlib import Path
from typing import Any


def note(what: str, part: str, error: float, bound: float, own: float | None = None) -> None:
    """One line of the table: an error against the library in float32, its bound, the library's in bf16."""
    _write({"what": what, "part": part, "error": error, "bound": bound, "own": own})


def note_memory(what: str, part: str, gib: float) -> None:
    """One line of the table of memory."""
    _write({"what": what, "part": part, "gib": gib})


def _write(line: dict[str, Any]) -> None:
    path = os.environ.get("DIVA_FIGURES")
    if path is not None:
        with Path(path).open("a") as file:
            file.write(json.dumps(line) + "\n")
