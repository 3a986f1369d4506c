"""Where the contrast sets of an image come from: files, a loader's items, dicts and functions.

A source is a dict from sample keys to contrast sets, or a function of a sample key.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diva_rs._base.files import as_path
from diva_rs.captions.negatives import swaps
from diva_rs.captions.sets import ContrastSet
from diva_rs.captions.vocabulary import Vocabulary
from diva_rs.data.keys import name_key, sample_keys
from diva_rs.errors import ConfigError, DataError, a_type, shown
from diva_rs.evaluation.reading import read_json_lines, text_field

Source = Mapping[int, Sequence[ContrastSet]] | Callable[[int], Sequence[ContrastSet]]
"""A sample key (see `diva_rs.step.draws.sample_keys`) -> the contrast sets of the image."""


def sets_of(source: Source, ids: Iterable[Any]) -> list[tuple[ContrastSet, ...]]:
    """The contrast sets of each of these samples; none for one that a dict does not hold.

    ``ids`` are sample ids, as a loader yields them, or sample keys. Raises DataError for what is no contrast
    set.

    >>> one = ContrastSet("colour", ("a red car", "a blue car"))
    >>> [len(sets) for sets in sets_of({3: [one]}, [3, 4])]
    [1, 0]
    """
    if not isinstance(source, Mapping) and not callable(source):
        raise ConfigError(f"contrast sets are {a_type(source)}: give a dict or a function of the sample key")
    keys = sample_keys(ids).tolist()
    if isinstance(source, Mapping):
        return [_checked(source.get(key, ()), key) for key in keys]
    return [_checked(source(key), key) for key in keys]


def from_values(
    vocabulary: Vocabulary, values: Mapping[int, Mapping[str, str]], names: Iterable[str] | None = None
) -> dict[int, tuple[ContrastSet, ...]]:
    """The vocabulary's sets around what is so far supposed of each image: sample key -> name -> word.

    ``names`` are the sets to make; by default all of the vocabulary's.

    >>> words = Vocabulary({"colour": ["red", "blue"]}, subjects=["car"])
    >>> from_values(words, {3: {"subject": "car"}})[3][0].captions
    ('a photo of a red car', 'a photo of a blue car')
    """
    chosen = vocabulary.names() if names is None else tuple(names)
    return {key: tuple(vocabulary.set_of(name, row) for name in chosen) for key, row in values.items()}


def from_loader(loader: Iterable[Any]) -> dict[int, tuple[ContrastSet, ...]]:
    """The sets that a loader's batches hold as ``captions``: for each sample a list of sets.

    A set is a `ContrastSet`, or a dict of its fields: ``{"name": "colour", "captions": ["a red car", "a blue
    car"]}``. Raises DataError with the batch and the sample.

    >>> sets = [[{"name": "colour", "captions": ["a red car", "a blue car"]}], []]
    >>> from_loader([{"images": torch.rand(2, 3, 8, 8), "ids": [3, 4], "captions": sets}])
    {3: (ContrastSet(name='colour', ...),), 4: ()}
    """
    found = dict[int, tuple[ContrastSet, ...]]()
    for number, batch in enumerate(loader):
        found |= of_batch(batch, number)
    return found


def of_batch(batch: Any, number: int) -> dict[int, tuple[ContrastSet, ...]]:
    """The sets of one batch of `from_loader`, whose number errors name."""
    where = f"batch {number}"
    if not isinstance(batch, Mapping) or "ids" not in batch or "captions" not in batch:
        raise DataError(f"{where} is {a_type(batch)}, a dict with 'ids' and 'captions' is needed")
    keys, rows = sample_keys(batch["ids"]).tolist(), batch["captions"]
    if not isinstance(rows, (list, tuple)) or len(rows) != len(keys):
        raise DataError(
            f"{where}: 'captions' is not a list with one list of sets for each of {len(keys)} ids"
        )
    found = dict[int, tuple[ContrastSet, ...]]()
    for place, (key, row) in enumerate(zip(keys, rows, strict=True)):
        if not isinstance(row, (list, tuple)):
            raise DataError(f"{where}: captions[{place}] is {a_type(row)}, a list of sets is needed")
        found[key] = tuple(_set(one, f"{where}, captions[{place}]") for one in row)
    return found


def read_sets(
    path: str | os.PathLike[str],
    vocabulary: Vocabulary | None = None,
    images: str | os.PathLike[str] | None = None,
) -> dict[int, tuple[ContrastSet, ...]]:
    """The contrast sets of a JSONL file: a line for each set, or for each caption.

    Each line names its image: by ``file`` (or ``file_name``), the path below the image folder, of an image in
    a shard ``0000.tar/000.jpg``; or by ``id``, as the loader yields it. Then it has ``name`` and ``captions``
    (and perhaps ``words``), one set; or ``caption`` (or ``text``), whose words are swapped by ``vocabulary``
    (see `swaps`)::

        {"file": "cats/1.jpg", "name": "colour", "captions": ["a red cat", "a black cat"]}
        {"file": "cats/2.jpg", "caption": "two black cats on a table"}

    With ``images``, the image folder, a file that is not there is an error. Raises DataError with file and
    line.
    """
    found = dict[int, tuple[ContrastSet, ...]]()
    folder = None if images is None else as_path(images)
    for where, row in read_json_lines(as_path(path)):
        key = _key(row, where, folder)
        if "captions" in row or vocabulary is None:
            sets: tuple[ContrastSet, ...] = (_set(row, where),)
        else:
            sets = swaps(text_field(row, ("caption", "text"), where), vocabulary)
        found[key] = (*found.get(key, ()), *sets)
    return found


def _key(row: Any, where: str, folder: Path | None) -> int:
    """The sample key of the image that a row names."""
    if not isinstance(row, Mapping):
        raise DataError(f"{where} holds {a_type(row)}, an object is needed")
    if "file" in row or "file_name" in row:
        name = text_field(row, ("file", "file_name"), where)
        if folder is not None and not os.path.isfile(folder / name):  # False also for no file's name
            raise DataError(f"{where}: the image {name} is missing in {folder}")
        return name_key(name)
    if "id" not in row:
        raise DataError(f"{where} names no image: 'file' or 'id' is needed")
    try:
        return int(sample_keys([row["id"]])[0])
    except DataError as err:
        raise DataError(f"{where}: {err}") from None


def _set(value: Any, where: str) -> ContrastSet:
    """A contrast set, or one of a dict."""
    if isinstance(value, ContrastSet):
        return value
    if not isinstance(value, Mapping) or "name" not in value or "captions" not in value:
        raise DataError(f"{where}: {shown(value)} has no 'name' and 'captions', those of a contrast set")
    try:
        return ContrastSet(value["name"], value["captions"], value.get("words") or ())
    except DataError as err:
        raise DataError(f"{where}: {err}") from None


def _checked(sets: Any, key: int) -> tuple[ContrastSet, ...]:
    if not isinstance(sets, (list, tuple)) or not all(isinstance(one, ContrastSet) for one in sets):
        raise DataError(f"sample {key}: {shown(sets)} is not a list of contrast sets")
    return tuple(sets)
