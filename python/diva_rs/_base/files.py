"""Opening files that may be anything: nothing here waits for a pipe, reads a device or fills the memory."""

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# No published model comes near these.
_MOST_LAYERS, _LARGEST = 1000, 1 << 24


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading bytes; links are followed.

    Raises:
        OSError: it is missing, may not be read, or is something else than a file.

    >>> open_regular("/dev/zero")
    Traceback (most recent call last):
    OSError: [Errno 22] it is a device, a file is needed: '/dev/zero'
    """
    try:
        # Without O_NONBLOCK a pipe that nobody writes to would be waited for.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as err:  # a name that no file can have
        raise OSError(22, str(err), os.fspath(path)) from err
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise OSError(22, f"it is {_kind(mode)}, a file is needed", os.fspath(path))
    return os.fdopen(handle, "rb")


def read_text(path: str | os.PathLike[str], most: int = 1 << 26) -> str:
    """The UTF-8 text of a regular file.

    Raises:
        OSError: as `open_regular`, or it has more than ``most`` bytes.
        UnicodeDecodeError (a ValueError): it is no UTF-8.
    """
    return read_bytes(path, most).decode("utf-8")


def read_bytes(path: str | os.PathLike[str], most: int) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: as `open_regular`, or it has more than ``most`` bytes.
    """
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise _too_large(path, most)
    return data


def read_lines(path: str | os.PathLike[str], most: int, longest: int = 1 << 20) -> Iterator[bytes]:
    """The lines of a regular file without their ends, one at a time; none longer than ``longest``.

    Raises:
        OSError: as `open_regular`, or it has more than ``most`` bytes.

    >>> import tempfile
    >>> place = Path(tempfile.mkdtemp()) / "lines"
    >>> _ = place.write_bytes(b"one\\ntoo long\\ntwo")
    >>> list(read_lines(place, most=100, longest=4))
    [b'one', b'two']
    """
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
    """Look at a file, or at everything in a folder, that a library is about to open.

    Raises:
        OSError: one of them is neither a regular file nor a folder, or cannot be opened; names it.

    >>> check_files("/dev/null")
    Traceback (most recent call last):
    OSError: [Errno 22] it is a device, a file is needed: '/dev/null'
    """
    if not os.path.isdir(path):
        open_regular(path).close()
        return
    for folder, _, files in os.walk(path):
        for name in files:
            open_regular(Path(folder, name)).close()


def check_model(folder: Path) -> None:
    """Look at a model's folder before a library opens it.

    Raises:
        OSError: something in it is no file and no folder.
        ValueError: its config.json cannot be read, or asks for a model of a size that none has.
    """
    check_files(folder)
    config = folder / "config.json"
    if config.exists():
        _check_sizes(json.loads(read_text(config)), "")


def _check_sizes(value: Any, key: str) -> None:
    """No published model has a size near these; a library would build for hours, or ask for all memory."""
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


def _kind(mode: int) -> str:
    return next((name for test, name in _KINDS if test(mode)), "no file")
