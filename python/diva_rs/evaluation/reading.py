"""Reading of annotation files: every fault is a DataError that names the file and the place in it."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from diva_rs._base.files import read_text, reading
from diva_rs.errors import DataError, a_type, shown
from diva_rs.evaluation.items import Benchmark, Item, Picture, pair_tasks

_LONGEST = 1 << 28  # bytes of an annotation file


def text_of(path: Path) -> str:
    """The UTF-8 text of a file, without a byte order mark."""
    try:
        with reading(path):
            return read_text(path, _LONGEST).removeprefix("\ufeff")
    except UnicodeDecodeError as err:
        raise DataError(f"{path} is not UTF-8 text: {err}") from err


def entries(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, entry) of each entry of a list in JSON."""
    for place, row in enumerate(read_json(path, list)):
        yield f"{path}, entry {place}", row


def read_json(path: Path, kind: type) -> Any:
    """The list or dict of a JSON file; a key that is there twice is an error."""
    content = _json(text_of(path), str(path))
    if not isinstance(content, kind):
        raise DataError(f"{path} holds {a_type(content)}, expected {a_type(kind())}")
    return content


def read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, entry) of each line of a JSONL file; empty lines are skipped."""
    for number, line in enumerate(text_of(path).split("\n"), 1):  # texts may hold other line ends
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _json(line, where)


def text_field(row: Any, names: str | Iterable[str], where: str) -> str:
    """The text of the first of these fields that the row has."""
    names = [names] if isinstance(names, str) else list(names)
    if not isinstance(row, Mapping):
        raise DataError(f"{where} is {a_type(row)}, expected an object with {' or '.join(names)}")
    for name in names:
        if row.get(name) is not None:
            value = row[name]
            if isinstance(value, str) and value.strip():
                return value
            raise DataError(f"{where}: {name} is {shown(value)}, expected a text")
    fields = ", ".join(map(str, row)) or "none"
    raise DataError(f"{where} has no text as {' or '.join(names)}; its fields are {fields}")


def texts(values: Iterable[Any], name: str, where: str) -> tuple[str, ...]:
    """The values of the field ``name``, each of which has to be a text."""
    return tuple(text_field({f"{name} {n}": value}, f"{name} {n}", where) for n, value in enumerate(values))


class ImageFolders:
    """Finds the image files that annotations name, in one of several folders.

    The first of the folders that holds an image is searched first for the next. ``decoded`` is that of the
    pictures.
    """

    def __init__(self, folders: Iterable[Path], decoded: bool = False) -> None:
        self.folders = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
        self.decoded = decoded

    def find(self, name: str, where: str) -> Picture:
        """The picture of a relative path; DataError if no folder has it."""
        for place, folder in enumerate(self.folders):
            path = folder / name
            if os.path.isfile(path):  # False also for names that no file can have
                self.folders.insert(0, self.folders.pop(place))
                return Picture.of_file(path, where, decoded=self.decoded)
        looked = ", ".join(map(str, self.folders)) or "no folder of images"
        raise DataError(
            f"{where}: the image {name} is missing: looked in {looked}; images= gives another folder"
        )

    def picture(self, row: Any, name: str, where: str) -> Picture:
        """The picture in a field of a row: a path, its bytes, or a mapping with one of them."""
        cell = row[name] if isinstance(row.get(name), (dict, bytes)) else text_field(row, name, where)
        content = cell.get("bytes") or cell.get("path") if isinstance(cell, dict) else cell
        if isinstance(content, bytes) and content:
            return Picture.of_bytes(content, f"{where}, {name}")
        if isinstance(content, str) and content:
            return self.find(content, where)
        raise DataError(f"{where}, {name} is {a_type(cell)} without an image: bytes or a path are expected")


def coco_folders(root: Path, images: Path | None) -> ImageFolders:
    """Where the images of COCO val2017 usually lie."""
    if images is not None:
        return ImageFolders([images, images / "val2017"])
    below = ("val2017", "images", "coco/val2017", "images/val2017", "coco/images/val2017", "")
    return ImageFolders([place / name for place in (root, root.parent) for name in below])


def pairs_of(
    rows: Iterable[tuple[str, Any]],
    name: str,
    root: Path,
    images: Path | None,
    category: str = "category",
    published: bool = True,
) -> Benchmark:
    """The pairs of rows with ``image_0``, ``caption_0`` (or ``text_0``), and so on.

    ``category`` is their optional field of that name. An ``id`` or ``index`` names them, else their place.
    Images of a published test set are read as they are stored.
    """
    folders = [root, root / "images", root / "data"] if images is None else [images, images / "images"]
    found, items = ImageFolders(folders, decoded=not published), []
    for where, row in rows:
        captions = [text_field(row, (f"caption_{n}", f"text_{n}"), where) for n in (0, 1)]
        pictures = [found.picture(row, f"image_{n}", where) for n in (0, 1)]
        kind = "all" if row.get(category) is None else text_field(row, category, where)
        number = row.get("id", row.get("index"))
        title = where.rpartition(" ")[2] if number is None else str(number)
        items.append(Item(title, kind, (captions[0], captions[1]), (pictures[0], pictures[1]), where))
    return Benchmark(name, tuple(pair_tasks(items).values()), str(root), is_test_set=published)


def _json(text: str, where: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"{where}: the key {shown(twice)} is there twice")
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as err:
        raise DataError(f"{where} is no JSON: {err}") from err
