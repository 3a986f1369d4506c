"""A folder of images with a table of their attributes as a world for the lab.

The table is CSV with a row per image: ``file`` (relative to the table), ``subject``, a column per attribute,
and optionally ``split`` and ``source``. An empty cell says that the attribute does not apply.
"""

import csv
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diva_rs._base.files import as_path, read_text
from diva_rs._base.optional import require
from diva_rs.captions import Vocabulary
from diva_rs.errors import ConfigError, DataError, shown
from diva_rs.microworld.captions import Tokenizer
from diva_rs.microworld.scores import Pair
from lab.worlds.even import Even
from lab.worlds.pairs import nearest_pairs
from lab.worlds.words import all_words, longest, vocabulary_of

TABLE, WORDS = "table.csv", "words.toml"
_OWN = ("file", "subject", "split", "source")  # every other column is an attribute


class Table:
    """The images of a table, by what the lab uses them for: see `lab.worlds.Data`.

    Rows without a ``split`` are distributed by `part_of`: a combination of values is in one split alone. The
    split "feedback" has the images of post-training; a table without it uses those of "train". A split of any
    other name, such as images of other sources, can be scored like "test".

    Args:
        place: the CSV, or a folder with ``table.csv``. A ``words.toml`` beside it is read as the
            `Vocabulary`; without one the attributes are adjectives: "a photo of a red striped bottle".
        side: images are cropped to a square and resized to this many pixels.
    """

    share: float | Mapping[str, float] | Even = 0.005

    def __init__(self, place: str | Path, side: int = 48) -> None:
        path = as_path(place)
        self.path, self.side = path / TABLE if path.is_dir() else path, side
        self.rows = _read(self.path)
        attributes = [name for name in self.rows[0] if name not in _OWN]
        self.vocabulary = vocabulary_of(self.path.with_name(WORDS), attributes, self.rows, self.path)
        words = {name: self.vocabulary.words(name) for name in (Vocabulary.SUBJECT, *attributes)}
        self.values: Mapping[str, Sequence[str]] = words
        self.tokenizer = Tokenizer(longest(self.vocabulary), all_words(self.vocabulary))
        self.labels = np.array([[words[name].index(row[name]) for name in words] for row in self.rows])
        # In an order by hash: neighbours in a table are alike, and controls exchange what neighbours have.
        order = sorted(range(len(self.rows)), key=lambda number: hash_of(self.rows[number]["file"]))
        self.splits: dict[str, list[int]] = {}
        for number in order:
            self.splits.setdefault(self.rows[number]["split"], []).append(number)

    def template(self, subject: str) -> str:
        """The caption of a subject alone."""
        return self.vocabulary.caption({Vocabulary.SUBJECT: subject})

    def identity(self) -> dict[str, Any]:
        """What the manifest of the checkpoints keeps."""
        contents = repr((self.rows, self.vocabulary.digest)).encode()
        digest = hashlib.blake2b(contents, digest_size=8).hexdigest()
        return {"table": str(self.path.absolute()), "digest": digest, "side": self.side}

    def pretraining(self, size: int, seed: int) -> "Rows":
        """At most ``size`` images of "train"."""
        return self._some("train", size)

    def feedback(self, size: int) -> "Rows":
        """At most ``size`` images of "feedback"; without that split, of "train"."""
        return self._some("feedback" if "feedback" in self.splits else "train", size)

    def fitted(self, size: int) -> "Rows":
        """At most ``size`` images of "train", on which probes are fitted."""
        return self._some("train", size)

    def scored(self, split: str, size: int, per_pattern: int) -> "Rows":
        """At most ``size`` images of a split."""
        return self._some(split, size)

    def pairs(self, split: str, per_pattern: int) -> list[Pair]:
        """At most ``per_pattern`` pairs of each attribute, as `nearest_pairs` finds them, of row numbers."""
        rows = self._numbers(split)
        found = []
        for column, name in enumerate(self.values):
            if name == Vocabulary.SUBJECT:
                continue
            sources = np.array([hash_of(self.rows[number]["source"]) for number in rows])
            codes = np.concatenate([self.labels[rows], sources[:, None]], axis=1)
            empty = [place for place, word in enumerate(self.values[name]) if not word]
            for one, two in nearest_pairs(codes, column, per_pattern, empty):
                numbers = (rows[one], rows[two])
                said = [{key: self.rows[n][key] for key in (Vocabulary.SUBJECT, name)} for n in numbers]
                first, second = (self.vocabulary.caption(values) for values in said)
                found.append(Pair(name, name, numbers, (first, second)))
        if not found:
            raise DataError(f"{self.path}: no two images of split {split!r} differ in an attribute")
        return found

    def pictures(self, numbers: Sequence[int]) -> Tensor:
        """Rows of the table as (B, 3, side, side) float32 in [0, 1]."""
        image = require("PIL.Image", extra="demo")
        ops = require("PIL.ImageOps", extra="demo")
        found = []
        for number in numbers:
            place = self.path.parent / self.rows[number]["file"]
            try:
                with image.open(place) as opened:
                    fitted = ops.fit(opened.convert("RGB"), (self.side, self.side))
            except OSError as err:
                raise DataError(f"{self.path}, row {number + 1}: {place} cannot be read: {err}") from None
            found.append(torch.from_numpy(np.asarray(fitted).copy()))
        return torch.stack(found).permute(0, 3, 1, 2).float() / 255

    def _some(self, split: str, size: int) -> "Rows":
        numbers = self._numbers(split)
        first = sum(len(self.splits[name]) for name in list(self.splits)[: list(self.splits).index(split)])
        return Rows(self, numbers[:size], first)

    def _numbers(self, split: str) -> Any:
        if split not in self.splits:
            raise ConfigError(f"split={shown(split)}: {self.path} has {', '.join(self.splits)}")
        return np.array(self.splits[split])


class Rows:
    """Some rows of a `Table` as a dataset: see `lab.pretraining.data.Captioned`."""

    subject = Vocabulary.SUBJECT

    def __init__(self, table: Table, numbers: Any, first: int) -> None:
        self.table, self.numbers, self.first = table, numbers, first
        self.values, self.tokenizer, self.vocabulary = table.values, table.tokenizer, table.vocabulary

    def __len__(self) -> int:
        return len(self.numbers)

    def images(self, numbers: Sequence[int]) -> Tensor:
        return self.table.pictures(self.numbers[list(numbers)].tolist())

    def labels(self, numbers: Sequence[int]) -> Tensor:
        return torch.from_numpy(self.table.labels[self.numbers[list(numbers)]])

    def captions(
        self, numbers: Sequence[int], share: float | Mapping[str, float], epoch: int = 0
    ) -> list[str]:
        return [self._caption(number, share, epoch) for number in numbers]

    def detailed_captions(self, numbers: Sequence[int], epoch: int = 0) -> list[str]:
        return self.captions(numbers, 1.0, epoch)

    @cached_property
    def _names(self) -> list[str]:
        return [name for name in self.values if name != self.subject]

    def _caption(self, number: int, share: float | Mapping[str, float], epoch: int) -> str:
        row, names = self.table.rows[self.numbers[number]], self._names
        key = np.array([self.first + number, epoch], np.uint64)
        words = np.random.Philox(key=key).random_raw(len(names))
        chances = (words >> np.uint64(11)) / float(1 << 53)
        limits = [share[name] if isinstance(share, Mapping) else share for name in names]
        order = [names[place] for place in np.argsort(chances) if chances[place] < limits[place]]
        return self.vocabulary.caption({name: row[name] for name in (self.subject, *order)}, order)


def part_of(values: Iterable[str]) -> str:
    """The split of a combination of values: "train" for eight in ten, "validation" and "test" for one each.

    >>> part_of(("cat", "red")), sorted({part_of([str(n)]) for n in range(99)})
    ('train', ['test', 'train', 'validation'])
    """
    place = hash_of("\0".join(values)) % 10
    return "validation" if place == 8 else "test" if place == 9 else "train"


def hash_of(text: str) -> int:
    """A number of a text, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def _read(path: Path) -> list[dict[str, str]]:
    """The rows; DataError with the row and what is missing."""
    if not path.is_file():
        raise DataError(f"{path} is missing: a CSV of images is needed, or a folder with a {TABLE}")
    reader = csv.DictReader(read_text(path).splitlines())
    rows = list(reader)
    columns = reader.fieldnames or []
    for name in ("file", "subject"):
        if name not in columns:
            raise DataError(f"{path}: there is no column {name!r}, only {', '.join(columns) or 'none'}")
    if not rows:
        raise DataError(f"{path} has no rows")
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise DataError(f"{path}, row {number}: {len(columns)} cells are needed")
        for name in ("file", "subject"):
            if not row[name]:
                raise DataError(f"{path}, row {number}: {name} is empty")
        values = [value for name, value in row.items() if name not in ("file", "split", "source")]
        row["split"] = row.get("split") or part_of(values)
        row.setdefault("source", "")
    return rows
