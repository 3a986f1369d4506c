"""Safe reading of files that may be anything, and writing of files that are whole or not there.

Reading never waits for a pipe, reads a device or fills the memory. Writing goes to a place beside the target,
is synced, and then renamed.
"""

import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from diva_rs.errors import DataError, DivaError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# No published model comes near these sizes.
_MOST_LAYERS, _LARGEST = 1000, 1 << 24
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")  # what `_temporary` gives


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading bytes; links are followed. Raises OSError."""
    try:
        # Without O_NONBLOCK, opening a pipe without a writer would wait for one.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as err:  # a name that no file can have
        raise OSError(22, str(err), os.fspath(path)) from err
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        kind = next((name for test, name in _KINDS if test(mode)), "no file")
        raise OSError(22, f"it is {kind}, a file is needed", os.fspath(path))
    return os.fdopen(handle, "rb")


def read_text(path: str | os.PathLike[str], most: int = 1 << 26) -> str:
    """The UTF-8 text of a regular file of at most ``most`` bytes; raises OSError or UnicodeDecodeError."""
    return read_bytes(path, most).decode("utf-8")


def read_bytes(path: str | os.PathLike[str], most: int) -> bytes:
    """The content of a regular file of at most ``most`` bytes; raises OSError."""
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise _too_large(path, most)
    return data


def read_lines(path: str | os.PathLike[str], most: int, longest: int = 1 << 20) -> Iterator[bytes]:
    """The lines of a regular file of at most ``most`` bytes; lines above ``longest`` bytes are left out."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise _too_large(path, most)
        while line := file.readline(longest + 1):
            if len(line.rstrip(b"\n")) <= longest:
                yield line.rstrip(b"\n")
                continue
            while line and not line.endswith(b"\n"):
                line = file.readline(longest)


def check_files(path: str | os.PathLike[str]) -> None:
    """Raise OSError unless a path, and everything in it, is a folder or a regular file that can be opened."""
    if not os.path.isdir(path):
        open_regular(path).close()
        return
    for folder, _, files in os.walk(path):
        for name in files:
            open_regular(Path(folder, name)).close()


def check_model(folder: Path) -> None:
    """As `check_files` for a model's folder; raises ValueError for a bad config.json.

    A library would build a model larger than any published one for hours, or allocate all memory.
    """
    check_files(folder)
    config = folder / "config.json"
    if config.exists():
        _check_sizes(json.loads(read_text(config)), "")


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder and its parents if they are missing; ``~`` is the home folder. Raises DataError."""
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as err:
        raise DataError(f"folder {folder} cannot be made: {getattr(err, 'strerror', None) or err}") from err
    return folder


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; raises DataError, and then the old file is unchanged."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")
        sync(beside)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically. A number that is not finite becomes null, which every reader of JSON accepts."""
    write_text(path, json.dumps(_finite(content), indent=2, default=str, allow_nan=False) + "\n")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; at the end it replaces ``path``. Raises DataError."""
    try:
        with beside(path) as place:
            yield place
    except DivaError:
        raise
    except (OSError, ValueError) as err:  # a ValueError: a name or a text that no file can have
        raise DataError(f"{path} could not be written ({err}): nothing at that path was changed") from err


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """As `replacing`; raises OSError if the disk fails."""
    if not path.name:
        raise DataError(
            f"'{path}' is a folder that cannot be replaced: give the name of a file or folder in it"
        )
    place = _temporary(path)
    try:
        _remove(place)
        yield place
        _into_place(place, path)
    finally:
        _remove(place)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that a crash leaves no half of it under its name."""
    aside = _temporary(folder)
    _remove(aside)
    with suppress(FileNotFoundError):
        os.replace(folder, aside)
    _remove(aside)


def sweep(folder: Path) -> None:
    """Remove the temporary files that killed writers have left in ``folder``."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            _remove(path)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def old(path: Path) -> Path:
    """The name of a folder that is being replaced, between the two renames."""
    return path.with_name(f".{path.name}.old")


def _into_place(place: Path, path: Path) -> None:
    moved = place.is_dir() and path.is_dir()
    try:
        if moved:  # a rename replaces a file, but not a folder that is not empty
            _remove(old(path))
            os.replace(path, old(path))
        os.replace(place, path)
    except BaseException:
        if moved and not path.exists():
            os.rename(old(path), path)
        raise
    sync(path.parent)
    if moved:
        _remove(old(path))


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    infinite = isinstance(content, float) and content - content != 0
    return None if infinite else content


def _check_sizes(value: Any, key: str) -> None:
    if isinstance(value, dict):
        for name, entry in value.items():
            _check_sizes(entry, name)
    elif isinstance(value, list):
        for entry in value:
            _check_sizes(entry, key)
    elif isinstance(value, int):
        most = _MOST_LAYERS if re.search("layers|heads|depth", key) else _LARGEST
        if abs(value) > most:
            raise ValueError(f"config.json: {key} is {value}, at most {most} is expected")


def _too_large(path: str | os.PathLike[str], most: int) -> OSError:
    return OSError(27, f"it has more than {most} bytes", os.fspath(path))
