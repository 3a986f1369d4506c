"""SPEC (Peng et al., arXiv 2312.00081): size, position, existence and count, in six folders."""

from collections.abc import Iterator
from pathlib import Path

from diva_rs.errors import DataError, shown
from diva_rs.evaluation.items import Benchmark, Item, Part, Task, first_right
from diva_rs.evaluation.reading import ImageFolders, entries, text_field, texts

NAME, KIND = "spec", "captions"
_SUBSETS = ("count", "relative_size", "absolute_size", "relative_spatial", "absolute_spatial", "existence")
_RULES = ("image2text", "text2image")
LOOKS_FOR = f"{'/, '.join(_SUBSETS)}/ with image2text.json and text2image.json"


def _files(root: Path) -> dict[tuple[str, str], Path]:
    """(rule, subset) -> file of those that are there."""
    below = [root, root / "data"]
    place = next((place for place in below if any((place / name).is_dir() for name in _SUBSETS)), root)
    files = {(rule, subset): place / subset / f"{rule}.json" for rule in _RULES for subset in _SUBSETS}
    return {key: file for key, file in files.items() if file.is_file()}


def matches(root: Path) -> bool:
    """Whether there is a file of a subset."""
    return bool(_files(root))


def read(root: Path, images: Path | None) -> Benchmark:
    """The items of all subsets that are there, from image to text and from text to image."""
    items: dict[str, list[Item]] = {}
    for (rule, subset), file in (files := _files(root)).items():
        folder = file.parent if images is None else images / subset
        items.setdefault(rule, []).extend(_items(file, subset, rule, ImageFolders([folder])))
    missing = [f"{name}, {rule}" for rule in _RULES for name in _SUBSETS if (rule, name) not in files]
    tasks = tuple(Task(rule, tuple(found), first_right) for rule, found in items.items())
    return Benchmark("SPEC", tasks, str(root), tuple(missing))


def _items(file: Path, subset: str, rule: str, pictures: ImageFolders) -> Iterator[Item]:
    for place, (where, row) in enumerate(entries(file)):
        query = text_field(row, "query", where)
        keys, label = row.get("keys"), row.get("label")
        if not isinstance(keys, list) or len(keys) < 2:
            raise DataError(f"{where}: keys is {shown(keys)}, expected two options or more")
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(keys):
            raise DataError(f"{where}: label is {shown(label)}, expected a number from 0 to {len(keys) - 1}")
        names = list(texts(keys, "key", where))
        names.insert(0, names.pop(label))  # the right one first, as the rule expects
        options: tuple[Part, ...] = tuple(names)
        one: tuple[Part, ...] = (query,)
        if rule == "image2text":
            one = (pictures.find(query, where),)
        else:
            options = tuple(pictures.find(name, where) for name in names)
        yield Item(f"{subset}/{place}", subset, options, one, where)
