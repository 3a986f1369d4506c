"""Something else in place of a file: nothing, a folder, a pipe, a device, a loop of links."""

import os
import random
import shutil
import socket
from collections.abc import Callable
from pathlib import Path


def missing(path: Path, rng: random.Random) -> None:
    path.unlink()


def empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def named_pipe(path: Path, rng: random.Random) -> None:
    """Nobody writes to it: opening it for reading would wait for ever."""
    path.unlink()
    os.mkfifo(path)


def listening_socket(path: Path, rng: random.Random) -> None:
    path.unlink()
    before = os.getcwd()
    os.chdir(path.parent)  # a socket's path may hold 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(before)


def endless_device(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to(rng.choice(["/dev/zero", "/dev/urandom", "/dev/null", "/dev/full"]))


def loop_of_links(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def dangling_link(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to("nowhere/at all")


def unreadable(path: Path, rng: random.Random) -> None:
    path.chmod(0)


def sparse(path: Path, rng: random.Random) -> None:
    """The file ends in a hole of up to 64 GB, which takes no room on the disk."""
    os.truncate(path, rng.choice([1 << 30, 1 << 36]))


def another_file(path: Path, rng: random.Random) -> None:
    """The contents of a neighbour."""
    others = [file for file in path.parent.rglob("*") if file.is_file() and file != path]
    if others:
        shutil.copyfile(rng.choice(sorted(others)), path)


def renamed(path: Path, rng: random.Random) -> None:
    """A name that is not UTF-8, or has a line break, beside or instead of the right one."""
    name = os.fsdecode(rng.choice([b"\xff\xfe", b"a\nb", b"\xed\xa0\x80", b"x" * 200])) + path.suffix
    (path.rename if rng.random() < 0.5 else lambda to: shutil.copyfile(path, to))(path.with_name(name))


PLACES: list[Callable[[Path, random.Random], None]] = [
    missing, empty, folder, named_pipe, listening_socket, endless_device, loop_of_links, dangling_link,
    unreadable, sparse, another_file, renamed,
]  # fmt: skip
