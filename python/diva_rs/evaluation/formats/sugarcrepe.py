"""SugarCrepe (Hsieh et al., arXiv 2306.14610): seven files of captions and negatives for COCO's val2017."""

import itertools
import re
from pathlib import Path
from typing import Any

from diva_rs.errors import DataError, shown
from diva_rs.evaluation.items import Benchmark, Item, Task, first_right
from diva_rs.evaluation.reading import coco_folders, read_json, text_field

NAME, KIND = "sugarcrepe", "captions"
LOOKS_FOR = "add_att.json, swap_obj.json, ... that hold objects"
PUBLISHED = {  # items of each file
    "add_att": 692,
    "add_obj": 2062,
    "replace_att": 788,
    "replace_obj": 1652,
    "replace_rel": 1406,
    "swap_att": 666,
    "swap_obj": 245,
}


def files_of(root: Path, opening: str) -> dict[str, Path]:
    """The files of the subsets, by name, whose JSON begins with a bracket."""
    found: dict[str, Path] = {}
    for name in PUBLISHED:
        for file in (root / f"{name}.json", root / "data" / f"{name}.json"):
            if file.is_file():
                with file.open("rb") as content:
                    first = content.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1].decode("latin-1")
                if first not in ("{", "["):
                    raise DataError(f"{file} is no JSON: it begins with {first!r}")
                if first == opening:
                    found.setdefault(name, file)
    return found


def matches(root: Path) -> bool:
    """Whether there is a file of a subset that holds an object."""
    return bool(files_of(root, "{"))


def read(root: Path, images: Path | None) -> Benchmark:
    """The items of all subsets that are there; the caption has to beat the negative."""
    files, pictures, items = files_of(root, "{"), coco_folders(root, images), []
    for subset, file in files.items():
        content = read_json(file, dict)
        for key in _ordered(content, file, PUBLISHED[subset]):
            row, where = content[key], f"{file}, key {key}"
            name = text_field(row, "filename", where)
            captions = text_field(row, "caption", where), text_field(row, "negative_caption", where)
            picture = pictures.find(name, where)
            items.append(Item(f"{subset}/{key}", subset, captions, (picture,), where, name))
    task = Task("image-to-text", tuple(items), first_right)
    missing = tuple(name for name in PUBLISHED if name not in files)
    return Benchmark("SugarCrepe", (task,), str(root), missing)


def _ordered(content: dict[str, Any], file: Path, published: int) -> list[str]:
    """The keys in order. Published files may have gaps; in others a gap is an item that was lost."""
    for key in content:
        if not re.fullmatch("0|[1-9][0-9]{0,8}", key):
            raise DataError(f"{file}: the key {shown(key)} is not a number")
    keys = sorted(content, key=int)
    for before, after in itertools.pairwise(map(int, keys)):
        if len(keys) != published and after != before + 1:
            raise DataError(
                f"{file}: key {before + 1} is missing, between {before} and {after}: the file has "
                f"{len(keys)} items, the published one {published}"
            )
    return keys
