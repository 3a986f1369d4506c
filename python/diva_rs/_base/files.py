"""Safe reading of files that may be anything, and writing of files that are whole or not there.

Reading never waits for a pipe, reads a device or fills the memory. Writing goes to a place beside the target,
is synced, and then renamed. A new file has the mode that the umask leaves, a replaced one keeps its own.
"""

import errno
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO

from diva_rs._base.leftovers import remove, sweep, temporary_of
from diva_rs.errors import DataError, DivaError, a_type

# No published model comes near these sizes.
_MOST_LAYERS, _LARGEST = 1000, 1 << 24
# A file system that cannot sync (CIFS, FUSE, WSL).
_NO_SYNC = ("EINVAL", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EBADF", "EPERM", "EACCES")
LFS = b"version https://git-lfs"  # the beginning of a pointer of Git LFS
# What systems put into folders; a leading dot marks the others (.DS_Store, .nfs0001, ._a.png).
_OF_SYSTEMS = ("Thumbs.db", "ehthumbs.db", "desktop.ini", "lost+found", "__MACOSX", "@eaDir", "$RECYCLE.BIN")


def as_path(path: str | os.PathLike[str]) -> Path:
    """A caller's path; a leading ``~`` or ``~user`` is that user's home folder."""
    return Path(os.path.expanduser(path))


def is_hidden(name: str) -> bool:
    """Whether a name is of a hidden file or folder, or one that systems put into folders."""
    return name.startswith(".") or name in _OF_SYSTEMS


def names_in(folder: Path) -> list[str]:
    """The sorted names in a folder that are not hidden; none if it is not a folder."""
    return sorted(name for name in (os.listdir(folder) if folder.is_dir() else ()) if not is_hidden(name))


def check_replaceable(folder: Path, known: Iterable[str], what: str) -> None:
    """Raise DataError where ``folder`` is a file, or holds one whose name fits no pattern in ``known``."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file: a folder is written")
    for name in names_in(folder):
        if not any(fnmatch(name, pattern) for pattern in known):
            raise DataError(f"{folder} holds {name!r}, which is not part of {what}: choose another folder")


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
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise OSError(22, f"it is {kind}, a file is needed", os.fspath(path))
    return os.fdopen(handle, "rb")


def is_pointer(path: str | os.PathLike[str]) -> bool:
    """Whether a file is what Git LFS leaves in place of a file that was not downloaded."""
    try:
        return read_bytes(path, 1 << 10).startswith(LFS)
    except OSError:  # also of a larger file
        return False


@contextmanager
def reading(path: str | os.PathLike[str], error: type[DivaError] = DataError) -> Iterator[None]:
    """In this block an OSError becomes ``error``, which names the file that could not be read."""
    try:
        yield
    except OSError as err:
        raise error(f"{path} cannot be read: {err.strerror or err}") from err


def read_json(path: Path, kind: type = object, error: type[DivaError] = DataError) -> Any:
    """The content of a JSON file, a list or a dict where ``kind`` says so; ``error`` names a bad file."""
    try:
        with reading(path, error):
            content = json.loads(read_text(path))
    except DivaError:
        raise
    except (ValueError, RecursionError) as err:
        raise error(f"{path} cannot be read: it is not valid JSON: {err}") from err
    if not isinstance(content, kind):
        wanted = "a list" if kind is list else "an object"
        raise error(f"{path} holds {a_type(content)}: {wanted} is needed")
    return content


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
            whole = len(line) <= longest or line.endswith(b"\n")
            if whole:
                yield line.rstrip(b"\n")
            while line and not line.endswith(b"\n"):
                line = file.readline(longest)


def check_files(path: str | os.PathLike[str]) -> None:
    """Raise OSError unless a path, and everything in it, is a folder or a regular file that can be opened."""
    for folder, _, files in os.walk(path) if os.path.isdir(path) else [("", [], [os.fspath(path)])]:
        for name in files:
            open_regular(os.path.join(folder, name)).close()


def check_model(folder: Path) -> None:
    """As `check_files` for a model's folder; raises ValueError for a config.json of a model larger than any
    published one, which a library would build for hours.
    """
    check_files(folder)
    if (folder / "config.json").exists():
        _check_sizes(json.loads(read_text(folder / "config.json")), "")


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder and its parents if they are missing; ``~`` is the home folder. Raises DataError."""
    folder = as_path(path)
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


class _NotWritten(DataError):
    """A file could not be written, or one within a folder that is; the cause says why."""


def _not_written(path: Path, cause: BaseException | None) -> _NotWritten:
    return _NotWritten(f"{path} could not be written ({cause}): nothing at that path was changed")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; at the end it replaces ``path``. Raises DataError."""
    try:
        with beside(path) as place:
            yield place
    except _NotWritten as err:
        raise _not_written(path, err.__cause__) from err.__cause__
    except DivaError:
        raise
    except (OSError, ValueError) as err:  # a ValueError: a name or a text that no file can have
        raise _not_written(path, err) from err
    try:
        sync(path.parent)
    except OSError as err:
        raise DataError(f"{path} was written, but may be lost if the machine fails: {err}") from err


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """As `replacing`; raises OSError if the disk fails."""
    if not path.name:
        raise DataError(f"'{path}' cannot be replaced: give the name of a file or folder in it")
    # A folder, since libraries write temporary files beside the one that they are given.
    temporary = temporary_of(path)
    place = temporary / path.name
    sweep(path.parent, path.name)
    try:
        remove(temporary)
        temporary.mkdir()
        place.touch()
        mode = place.stat().st_mode  # what umask and folder leave; safetensors takes it away
        place.unlink()
        yield place
        _keep_access(place, path, mode)
        _into_place(place, path)
    finally:
        remove(temporary)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that a crash leaves no half of it under its name."""
    aside = temporary_of(folder)
    remove(aside)
    with suppress(FileNotFoundError):
        os.replace(folder, aside)
    remove(aside)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk, if the file system can say so."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as err:
        if errno.errorcode.get(err.errno or 0) not in _NO_SYNC:
            raise


def old(path: Path) -> Path:
    """The name of a folder that is being replaced, between the two renames."""
    return path.with_name(f".{path.name}.old")


def _into_place(place: Path, path: Path) -> None:
    moved = place.is_dir() and path.is_dir()
    try:
        if moved:  # a rename replaces a file, but not a folder that is not empty
            remove(old(path))
            os.replace(path, old(path))
        os.replace(place, path)
    except BaseException:
        if moved and not path.exists():
            os.rename(old(path), path)
        raise
    if path.is_dir():
        remove(old(path))


def _keep_access(place: Path, path: Path, mode: int) -> None:
    """Give new files the mode and the group of those that they replace, and others at least ``mode``."""
    for new in (place, *place.rglob("*")):
        before = path / new.relative_to(place)
        with suppress(OSError):  # file systems without modes or groups
            if before.exists() and before.is_dir() == new.is_dir():
                new.chmod(stat.S_IMODE(before.stat().st_mode))
                os.chown(new, -1, before.stat().st_gid)
            elif new.is_file():
                new.chmod(stat.S_IMODE(new.stat().st_mode | mode))


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
