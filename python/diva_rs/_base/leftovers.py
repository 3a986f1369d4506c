"""The temporary files of writers, and the removal of those that a kill has left."""

import hashlib
import os
import re
import shutil
import socket
import time
from contextlib import suppress
from pathlib import Path

_TEMPORARY = re.compile(r"\..+?\.(\d+)(?:-([0-9a-f]{6}))?\.tmp")  # what `temporary_of` gives
_FORGOTTEN = 3600.0  # seconds after which the temporary files of another machine are nobody's


def temporary_of(path: Path) -> Path:
    """Where this process writes what then replaces ``path``."""
    return path.with_name(f".{path.name}.{os.getpid()}-{_machine()}.tmp")


def sweep(folder: Path, name: str = "") -> None:
    """Remove the temporary files that killed writers have left in ``folder``: all, or those of ``name``."""
    with suppress(OSError):
        for entry in os.listdir(folder):
            left = _TEMPORARY.fullmatch(entry) if entry.startswith(f".{name}") else None
            if left is not None and _is_left(folder / entry, int(left[1]), left[2]):
                remove(folder / entry)


def remove(path: Path) -> None:
    """Remove a file or a folder, as far as it can be."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _machine() -> str:
    """Six digits for the machine or container in which this process has its number."""
    name = socket.gethostname()
    with suppress(OSError):
        name += os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(name.encode()).hexdigest()[:6]


def _is_left(path: Path, process: int, machine: str | None) -> bool:
    """Whether the process that wrote a temporary file has ended."""
    try:
        if machine not in (None, _machine()):
            return time.time() - path.stat().st_mtime > _FORGOTTEN
        os.kill(process, 0)
    except (OSError, OverflowError) as err:
        return isinstance(err, ProcessLookupError)
    return False
