"""What a benchmark of fine detail is made of, and the rules by which its items are right.

Every item is a small matrix of similarities, and a rule says from the matrix whether the item is right. A tie
counts as wrong: an option is picked only if its similarity is above that of every other.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from diva_rs.errors import ConfigError, DataError, shown

HALVES = ("validation", "test")

Similarity = Callable[[Tensor, Tensor], Tensor]
"""Embeddings (R, D) and (C, D) -> similarities (R, C)."""


def cosines(rows: Tensor, columns: Tensor) -> Tensor:
    """(R, D) and (C, D), normalised -> (R, C): each entry is summed alike, so equal options are a tie.

    >>> from diva_rs.evaluation.items import cosines
    >>> cosines(torch.eye(2), torch.eye(2)[:1]).tolist()
    [[1.0], [0.0]]
    """
    return (rows.double().unsqueeze(1) * columns.double()).sum(dim=-1)


@dataclass(frozen=True)
class Picture:
    """An image file, or its bytes; two with the same key are embedded once."""

    key: str
    name: str = field(compare=False)  # stands for it in errors
    source: Path | bytes = field(compare=False, repr=False)
    id: int | None = field(default=None, compare=False)  # keys drawn tokens; by default the key does
    decoded: bool = False  # as the training images, not as it is stored: see `Bank`

    @classmethod
    def of_file(cls, path: Path, where: str, decoded: bool = False) -> "Picture":
        """The image at ``path``; DataError with ``where`` if there is none."""
        if not os.path.isfile(path):  # False also for names that no file can have
            raise DataError(f"{where}: the image {path} is missing")
        return cls(str(path), str(path), path, decoded=decoded)

    @classmethod
    def of_bytes(cls, content: bytes, where: str) -> "Picture":
        """An image that a table contains; ``where`` names its row and column."""
        return cls(hashlib.sha256(content).hexdigest(), where, content)


Part = str | Picture
Rule = Callable[[Tensor], bool]
"""The similarities (rows, columns) of an item -> whether it is right."""


@dataclass(frozen=True)
class Item:
    """One question: texts or images as rows and columns of a matrix, in the order that its rules expect."""

    id: str
    category: str
    rows: tuple[Part, ...]
    columns: tuple[Part, ...]
    where: str  # file and place, for errors
    shared: str = ""  # a set: items that share it are in the same half

    @property
    def group(self) -> str:
        """What decides its half: the set, or the item alone."""
        return self.shared or self.id


@dataclass(frozen=True)
class Task:
    """Items with the rule that decides them.

    With ``groups``, group -> ids of its items, what counts is the groups: right if all of their items are.
    """

    rule: str
    items: tuple[Item, ...]
    right: Rule
    unit: str = "items"
    groups: Mapping[str, tuple[str, ...]] | None = None

    def kept(self, keep: Callable[[Item], bool]) -> "Task":
        """The task with some of its items; a group goes with its items."""
        items = tuple(item for item in self.items if keep(item))
        ids = {item.id for item in items}
        groups = self.groups and {name: of for name, of in self.groups.items() if ids.issuperset(of)}
        return replace(self, items=items, groups=groups)


@dataclass(frozen=True)
class Benchmark:
    """A data set that was read: its tasks, the first of which is its score."""

    name: str
    tasks: tuple[Task, ...]
    root: str
    missing: tuple[str, ...] = ()  # published parts that are not there
    is_test_set: bool = True  # whether it is a published test set
    similarity: Similarity = cosines
    batch: int | None = None  # images and texts that are embedded at a time; None: as the caller says

    def half(self, which: str) -> "Benchmark":
        """One of two halves, "validation" or "test", by a fixed hash of the items.

        Models and settings can be chosen on the validation half and reported on the test half. Items that
        share an image or a set are in the same half, by the least of their names.
        """
        if which not in HALVES:
            raise ConfigError(f"half={shown(which)}: one of {', '.join(HALVES)} is needed")
        names = _names(item for task in self.tasks for item in task.items)
        tasks = tuple(task.kept(lambda item: _half(names[item.group]) == which) for task in self.tasks)
        if not all(task.items for task in tasks):
            raise DataError(f"{self.root}: too few items for two halves, none is in the {which} half")
        return replace(self, name=f"{self.name}, {which} half", tasks=tasks, is_test_set=which == "test")

    def check(self) -> "Benchmark":
        """This benchmark; DataError that names an item which is there twice or cannot be decided."""
        for task in self.tasks:
            if not task.items:
                raise DataError(f"{self.root}: {self.name} has no items")
            seen: dict[str, Item] = {}
            for item in task.items:
                known = seen.setdefault(item.id, item)
                if known is not item:
                    raise DataError(f"{item.where}: the id {item.id} is that of {known.where} as well")
                for side in (item.rows, item.columns):
                    _distinct(item, side)
        return self

    @property
    def digest(self) -> str:
        """A hash of the texts and of the names of the images: the same for one data set in two places."""
        names = (part if isinstance(part, str) else os.path.basename(part.key) for part in self.parts())
        return hashlib.sha256("\0".join(names).encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def parts(self) -> Iterator[Part]:
        """Every text and image of the items."""
        for task in self.tasks:
            for item in task.items:
                yield from (*item.rows, *item.columns)


def _names(items: Iterable[Item]) -> dict[str, str]:
    """Group -> the least name among the groups that share images, directly or through others."""
    from scipy.cluster.hierarchy import DisjointSet

    linked: Any = DisjointSet()
    for item in items:
        for part in (item.group, *(p for p in (*item.rows, *item.columns) if isinstance(p, Picture))):
            linked.add(part)
            linked.merge(item.group, part)
    subsets = ([part for part in subset if isinstance(part, str)] for subset in linked.subsets())
    return {name: min(names) for names in subsets for name in names}


def _half(name: str) -> str:
    return HALVES[hashlib.sha256(name.encode()).digest()[0] % 2]


def _distinct(item: Item, side: Sequence[Part]) -> None:
    seen: set[str] = set()
    for place, part in enumerate(side):
        text = part.key if isinstance(part, Picture) else " ".join(part.split())
        if not text:
            raise DataError(f"{item.where}: caption {place} is empty")
        if text in seen:
            what = f"image {part.name}" if isinstance(part, Picture) else f"caption {shown(part)}"
            raise DataError(f"{item.where}: the {what} is there twice: no answer can be right")
        seen.add(text)


def text_right(m: Tensor) -> bool:
    """(captions, images) (2, 2): for both images the own caption is more similar than the other."""
    return bool(m[0, 0] > m[1, 0] and m[1, 1] > m[0, 1])


def image_right(m: Tensor) -> bool:
    """(captions, images) (2, 2): for both captions the own image is more similar than the other."""
    return bool(m[0, 0] > m[0, 1] and m[1, 1] > m[1, 0])


def first_right(m: Tensor) -> bool:
    """One row or one column: the first option is more similar than every other."""
    return bool((m.flatten()[0] > m.flatten()[1:]).all())


def pair_tasks(items: Sequence[Item], image: Rule = image_right) -> dict[str, Task]:
    """The three scores of items with two captions and two images, by name; the first one counts."""
    rules: dict[str, Rule] = {
        "group": lambda m: text_right(m) and image(m),
        "text": text_right,
        "image": image,
    }
    return {name: Task(name, tuple(items), rule, "pairs") for name, rule in rules.items()}
