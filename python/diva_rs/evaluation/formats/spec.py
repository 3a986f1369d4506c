"""SPEC (Peng et al., arXiv 2312.00081): size, position, existence and count, in six folders."""

from collections.abc import Iterator
from pathlib import Path

from diva_rs.errors import DataError, shown
from diva_rs.evaluation.items import Benchmark, Item, Part, Task, first_right
from diva_rs.evaluation.reading import ImageFolders, read_json, text_field, texts

NAME, KIND = "spec", "captions"
_SUBSETS = ("count", "relative_size", "absolute_size", "relative_spatial", "absolute_spatial", "existence")
_RULES = ("image2text", "text2image")
LOOKS_FOR = f"{'/, '.join(_SUBSETS)}/ with image2text.json and text2image.json"


def _place(root: Path) -> Path:
    below = [root, root / "data"]
    return next((place for place in below if any((place / name).is_dir() for name in _SUBSETS)), root)


def matches(root: Path) -> bool:
    """Whether there is a file of a subset."""
    return any((_place(root) / name / f"{rule}.json").is_file() for name in _SUBSETS for rule in _RULES)


def read(root: Path, images: Path | None) -> Benchmark:
    """The items of all subsets that are there, from image to text and from text to image."""
    tasks, missing = [], []
    for rule in _RULES:
        items: list[Item] = []
        for subset in _SUBSETS:
            file = _place(root) / subset / f"{rule}.json"
            if file.is_file():
                items += _items(file, subset, rule, file.parent if images is None else images / subset)
            else:
                missing.append(f"{subset}, {rule}")
        if items:
            tasks.append(Task(rule, tuple(items), first_right))
    return Benchmark("SPEC", tuple(tasks), str(root), tuple(missing))


def _items(file: Path, subset: str, rule: str, folder: Path) -> Iterator[Item]:
    pictures = ImageFolders([folder])
    for place, row in enumerate(read_json(file, list)):
        where = f"{file}, entry {place}"
        query = text_field(row, "query", where)
        keys, label = row.get("keys"), row.get("label")
        if not isinstance(keys, list) or len(keys) < 2:
            raise DataError(f"{where}: keys is {shown(keys)}, expected two options or more")
        names = list(texts(keys, "key", where))
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(keys):
            raise DataError(f"{where}: label is {shown(label)}, expected a number from 0 to {len(keys) - 1}")
        # The right one first, as the rule expects.
        names.insert(0, names.pop(label))
        options: tuple[Part, ...] = tuple(names)
        one: tuple[Part, ...] = (query,)
        if rule == "image2text":
            one = (pictures.find(query, where),)
        else:
            options = tuple(pictures.find(name, where) for name in names)
        yield Item(f"{subset}/{place}", subset, options, one, where)
