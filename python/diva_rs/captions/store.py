"""Judged images on disk: a finished folder, and the images of a run that has not ended.

``losses-00000.jsonl``, ...  one line per image, in the order of the keys: see `Row`
``judgements.json``          what made them, and what calibration found: see `Facts`
``vocabulary.toml``          the words, where the sets are those of a vocabulary
``manifest.json``            size and SHA-256 of these files
``parts/``                   of a run that has not ended: what makes the losses, in ``plan.json``, and the
                             images that are finished, in a file for each batch, named by its digest
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator
from typing_extensions import Self

from diva_rs._base.checkpoint import MANIFEST, verify, write_manifest
from diva_rs._base.files import (
    as_path,
    check_replaceable,
    make_folder,
    names_in,
    old,
    read_bytes,
    reading,
    remove_folder,
    replacing,
    write_json,
    write_text,
)
from diva_rs._base.leftovers import sweep
from diva_rs._base.optional import one_line
from diva_rs._base.settings import differing
from diva_rs.captions.posteriors import Reliability
from diva_rs.captions.sets import ContrastSet
from diva_rs.captions.vocabulary import Vocabulary
from diva_rs.data.accounting import Accounting
from diva_rs.errors import ConfigError, DataError, WeightsError

_FACTS, _WORDS, _LOSSES = "judgements.json", "vocabulary.toml", "losses-{:05}.jsonl"
_PARTS, _PLAN = "parts", "plan.json"
_KNOWN = (_FACTS, _WORDS, MANIFEST, _PARTS, "losses-?????.jsonl", "judged.csv", "judged.html")
_IMAGES = 4096  # in a file of a finished folder
_MOST_BYTES = 1 << 31  # of a file


class Measured(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """A contrast set of an image and its losses: K lists of one finite loss for each draw."""

    set: ContrastSet
    losses: tuple[tuple[float, ...], ...]
    settled: bool

    @model_validator(mode="after")
    def _fits(self) -> Self:
        draws = {len(losses) for losses in self.losses}
        if len(self.losses) != len(self.set) or len(draws) != 1 or 0 in draws:
            raise ValueError(f"losses of {len(self.set)} captions, equally many of each, are needed")
        return self


class Row(BaseModel, extra="forbid", frozen=True):
    """A judged image: its sample key, a hash of its content ("": not recorded), its sets, and the words of
    names that were not judged.
    """

    key: int
    content: str = ""
    sets: tuple[Measured, ...]
    given: dict[str, str] = {}

    @classmethod
    def of(
        cls, key: int, evidence: Iterable[Any], given: Mapping[str, str] | None = None, content: str = ""
    ) -> Self:
        """The row of an image from the `Evidence` of its sets."""
        sets = [Measured(set=e.set, losses=e.losses.tolist(), settled=e.settled) for e in evidence]
        return cls(key=key, content=content, sets=tuple(sets), given=dict(given or {}))


class Facts(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """What is said of all judgements of a folder.

    temperatures, reliability  by set name
    made_by                    teacher, settings, digest of the vocabulary: what decides the losses
    accounting                 the images that were read, and what was left out
    """

    temperatures: dict[str, Annotated[float, Field(gt=0)]]
    reliability: dict[str, Reliability]
    made_by: dict[str, Any] = {}
    accounting: Accounting | None = None


class _Contents(Facts, frozen=True):
    """The content of ``judgements.json``."""

    format: Literal["diva-rs judgements 1"] = "diva-rs judgements 1"
    images: int
    files: Annotated[int, Field(ge=0, le=99_999)]  # of losses
    vocabulary: str | None  # its digest


class Unfinished:
    """The images in ``folder`` that are finished, while others are judged.

    A folder of a run that was interrupted is continued, and a finished one too: its data may have new images.
    Several processes may add rows to one folder. Raises ConfigError, naming what differs, where another
    teacher, vocabulary or setting made the losses in it; DataError where it holds other files, or damaged
    ones.
    """

    def __init__(
        self, folder: str | os.PathLike[str], made_by: Mapping[str, Any], overwrite: bool = False
    ) -> None:
        self.folder = as_path(folder).absolute()
        self.made_by: dict[str, Any] = json.loads(json.dumps(made_by))
        self.rows: dict[int, Row] = {}
        check_replaceable(self.folder, _KNOWN, "a folder of judgements")
        if overwrite:
            remove_folder(self.folder)
        elif not self.folder.exists() and old(self.folder).exists():
            os.rename(old(self.folder), self.folder)  # the machine went down between the renames of `finish`
        self._parts = make_folder(self.folder / _PARTS)
        sweep(self._parts)
        if (self.folder / _FACTS).exists():
            facts, _, rows = read(self.folder)
            self._compare(facts.made_by)
            self.rows = {row.key: row for row in rows}
        plan = self._parts / _PLAN
        if not plan.exists():
            write_json(plan, self.made_by)
        try:
            self._compare(TypeAdapter(dict[str, Any]).validate_json(_content(plan)))
        except ValidationError as err:
            raise DataError(f"{plan} is damaged: overwrite the judgements") from err
        self.gather()

    def add(self, rows: Iterable[Row]) -> None:
        """Write finished images to the disk."""
        new = list(rows)
        text = _lines(new)
        write_text(self._parts / f"{_digest(text.encode())}.jsonl", text)
        self.rows.update({row.key: row for row in new})

    def gather(self) -> None:
        """Read the images that are finished, also those of other processes."""
        for name in names_in(self._parts):
            file = self._parts / name
            if name != _PLAN:
                content = _content(file)
                if file.stem != _digest(content):
                    raise DataError(f"{file} is damaged, or is not a file of judged images: remove it")
                self.rows.update({row.key: row for row in _rows(content, file)})

    def finish(self, facts: Facts, vocabulary: Vocabulary | None = None) -> None:
        """Write the finished folder in place of this one."""
        made = facts.model_copy(update={"made_by": self.made_by})
        write(self.folder, self.rows.values(), made, vocabulary)

    def _compare(self, saved: Mapping[str, Any]) -> None:
        if found := differing(dict(_flat(saved)), dict(_flat(self.made_by))):
            raise ConfigError(
                f"the judgements in {self.folder} were made otherwise ({'; '.join(found)}): choose another "
                "folder, or overwrite them"
            )


def write(folder: Path, rows: Iterable[Row], facts: Facts, vocabulary: Vocabulary | None = None) -> None:
    """Write a finished folder in place of what was there; it appears whole. Raises DataError."""
    check_replaceable(folder, _KNOWN, "a folder of judgements")
    ordered = sorted(rows, key=lambda row: row.key)
    starts = range(0, len(ordered), _IMAGES)
    digest = None if vocabulary is None else vocabulary.digest
    about = {"images": len(ordered), "files": len(starts), "vocabulary": digest}
    content = _Contents(**{**dict(facts), **about})
    make_folder(folder.parent)
    with replacing(folder) as place:
        place.mkdir()
        for number, start in enumerate(starts):
            write_text(place / _LOSSES.format(number), _lines(ordered[start : start + _IMAGES]))
        if vocabulary is not None:
            write_text(place / _WORDS, vocabulary.to_toml())
        write_json(place / _FACTS, content.model_dump(mode="json"))
        write_manifest(place, names_in(place))


def read(folder: Path) -> tuple[Facts, Vocabulary | None, list[Row]]:
    """What `write` wrote; DataError names a file that is missing, damaged or another one."""
    if not folder.exists() and old(folder).exists():
        folder = old(folder)
    if not (folder / MANIFEST).is_file():
        what = "holds images of a run that has not ended" if (folder / _PARTS).is_dir() else "is not one"
        raise DataError(f"{folder}: a folder of judgements is needed, and this {what}: run diva-rs judge")
    try:
        verify(folder, [_FACTS])
        facts = _Contents.model_validate_json(_content(folder / _FACTS))
        files = [_LOSSES.format(number) for number in range(facts.files)]
        words = [] if facts.vocabulary is None else [_WORDS]
        verify(folder, [*files, *words])
        rows = [row for file in files for row in _rows(_content(folder / file), folder / file)]
        vocabulary = Vocabulary.read(folder / _WORDS) if words else None
        named = {each.set.name for row in rows for each in row.sets}
        if missing := sorted(named - (facts.temperatures.keys() & facts.reliability.keys())):
            raise DataError(f"{folder / _FACTS} has no temperature or reliability of {missing[0]!r}")
    except ValidationError as err:
        raise DataError(f"{folder / _FACTS} cannot be used: {one_line(err)}") from err
    except (WeightsError, ConfigError) as err:
        raise DataError(f"{err}; make the judgements again") from err
    return facts, vocabulary, rows


def _lines(rows: Iterable[Row]) -> str:
    return "".join(f"{row.model_dump_json()}\n" for row in rows)


def _rows(content: bytes, file: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            rows.append(Row.model_validate_json(line))
        except ValidationError as err:
            raise DataError(f"{file}, line {number}, is not a judged image: {one_line(err)}") from err
    return rows


def _content(file: Path) -> bytes:
    with reading(file):
        return read_bytes(file, _MOST_BYTES)


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _flat(facts: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of a mapping and of those within it, under names such as "teacher weights"."""
    for name, value in facts.items():
        inner = isinstance(value, Mapping)
        yield from _flat(value, f"{before}{name} ") if inner else [(f"{before}{name}", value)]
