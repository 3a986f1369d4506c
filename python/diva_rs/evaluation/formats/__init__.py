"""The benchmarks of fine detail that are read from a local folder: one module of this folder each.

A module holds what `Format` names. Another package adds a format by an entry point of the group
``diva_rs.benchmarks`` that names its module.
"""

import functools
import importlib
import os
import pkgutil
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from diva_rs._base.files import as_path, names_in
from diva_rs._base.settings import hint
from diva_rs.errors import ConfigError, DataError, shown
from diva_rs.evaluation.items import Benchmark

PARTS = ("data", "test", "images")  # folders in which formats look as well


class Format(Protocol):
    """One published format: a module, or any object with these names."""

    NAME: str  # in arguments
    KIND: str  # "pairs": two images with two captions; "captions": options to choose from
    LOOKS_FOR: str  # the files by which a folder is recognised, for messages

    def matches(self, root: Path) -> bool:
        """Whether the folder has this format."""

    def read(self, root: Path, images: Path | None) -> Benchmark:
        """Read it; ``images`` is the folder of its images, where they lie elsewhere. Raises DataError."""


@functools.cache
def formats() -> dict[str, Format]:
    """Every format, by name."""
    others = [entry.load() for entry in entry_points(group="diva_rs.benchmarks")]
    own = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return {found.NAME: found for found in (*others, *own)}


def find_benchmarks(folder: str | os.PathLike[str]) -> Iterator[tuple[Path, str]]:
    """(folder, name of its format) of ``folder`` and the folders directly in it that hold a benchmark.

    >>> [name for _, name in find_benchmarks(diva_rs.microworld.write_mmvp(tempfile.mkdtemp()))]
    ['mmvp-vlm']
    """
    root = as_path(folder)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give the one that holds the benchmarks")
    here = list(_matching(root))
    yield from ((root, name) for name in here)
    for place in (root / name for name in names_in(root) if (root / name).is_dir()):
        for name in _matching(place):
            # The parts of a benchmark that was found in `root` itself.
            if name not in here or place.name not in PARTS:
                yield place, name


def _matching(place: Path) -> Iterator[str]:
    """The formats of a folder. Of a damaged one the first that cannot decide: reading it raises the error."""
    for name, found in formats().items():
        try:
            if found.matches(place):
                yield name
        except DataError:
            yield name
            return


def read_benchmark(
    root: str | os.PathLike[str],
    name: str | None = None,
    images: str | os.PathLike[str] | None = None,
    half: str | None = None,
    kind: str | None = None,
) -> Benchmark:
    """Read the benchmark in a folder and check it; DataError if there is none, or one not as published.

    ``name`` is that of its format, by default the one that the folder's files show; ``images`` the folder of
    its images, where it is not beside the captions; ``half`` "validation" or "test" (see `Benchmark.half`).
    With ``kind``, "pairs" or "captions", formats of that kind alone are taken.

    >>> read_benchmark(diva_rs.microworld.write_mmvp(tempfile.mkdtemp())).name
    'MMVP-VLM'
    """
    place = as_path(root)
    if not place.is_dir():
        raise DataError(f"{place} is not a folder: give the one that holds the benchmark")
    known = {key: found for key, found in formats().items() if kind in (None, found.KIND)}
    if name is not None and name not in known:
        near = hint(name, known) or f": {', '.join(known)}"
        raise ConfigError(f"benchmark={shown(name)} is not known{near}")
    names = [name] if name else [key for key, found in known.items() if found.matches(place)]
    if not names:
        looked = "; ".join(f"{key}: {found.LOOKS_FOR}" for key, found in known.items())
        raise DataError(f"{place} holds no benchmark that is known. Looked for {looked}")
    if len(names) > 1:
        raise ConfigError(f"{place} holds {' and '.join(names)}: name one with benchmark=")
    where = None if images is None else as_path(images)
    if where is not None and not where.is_dir():
        raise DataError(f"images={where} is not a folder")
    benchmark = known[names[0]].read(place, where).check()
    return benchmark if half is None else benchmark.half(half)
