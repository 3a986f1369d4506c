"""What'sUp (Kamath et al., arXiv 2310.19785): prepositions in photographs, COCO and Visual Genome."""

import re
from collections.abc import Iterator
from pathlib import Path

from diva_rs.errors import DataError, shown
from diva_rs.evaluation.items import Benchmark, Item, Task, first_right
from diva_rs.evaluation.reading import ImageFolders, coco_folders, entries, text_field, texts

NAME, KIND = "whatsup", "captions"
_SUBSETS: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    # File -> its name, and the two pairs of prepositions that make a set in the controlled ones.
    "controlled_images_dataset.json": ("controlled A", (("left", "right"), ("on", "under"))),
    "controlled_clevr_dataset.json": ("controlled B", (("left", "right"), ("front", "behind"))),
    "coco_qa_one_obj.json": ("COCO, one object", ()),
    "coco_qa_two_obj.json": ("COCO, two objects", ()),
    "vg_qa_one_obj.json": ("VG, one object", ()),
    "vg_qa_two_obj.json": ("VG, two objects", ()),
}
LOOKS_FOR = ", ".join(_SUBSETS)
_SCENE = re.compile(r"([^_]+)_(left|right|on|under|in[-_]front|front|behind)(?:_of)?_(.+)")


def matches(root: Path) -> bool:
    """Whether there is a file of a subset."""
    return any((_place(root) / name).is_file() for name in _SUBSETS)


def _place(root: Path) -> Path:
    """The folder of the files: ``data`` in a copy of the repository."""
    return root if any((root / name).is_file() for name in _SUBSETS) else root / "data"


def read(root: Path, images: Path | None) -> Benchmark:
    """The items of all subsets that are there; in each the first option is right.

    In the controlled subsets four photographs of the same two objects are a set, and two with opposite
    prepositions a pair: right if all of their items are.
    """
    root = _place(root)
    items: list[Item] = []
    pairs: dict[str, tuple[str, ...]] = {}
    sets: dict[str, tuple[str, ...]] = {}
    missing = []
    for name, (subset, prepositions) in _SUBSETS.items():
        if not (root / name).is_file():
            missing.append(subset)
            continue
        if not prepositions:
            items += _two_options(root / name, subset, images)
            continue
        scenes: dict[str, dict[str, str]] = {}
        for objects, preposition, item in _controlled(root / name, subset, images):
            known = scenes.setdefault(objects, {})
            if preposition in known:
                raise DataError(f"{item.where}: {objects} has {preposition!r} twice")
            known[preposition] = item.id
            items.append(item)
        for objects, found in scenes.items():
            for pair in prepositions:
                lost = [one for one in pair if one not in found]
                if lost:
                    raise DataError(f"{root / name}: the set {objects} lacks {', '.join(lost)}")
                pairs[f"{objects}/{'-'.join(pair)}"] = tuple(found[one] for one in pair)
            sets[objects] = tuple(found.values())
    tasks = [Task("single", tuple(items), first_right)]
    if sets:
        controlled = tuple(item for item in items if item.shared in sets)
        tasks.append(Task("pair", controlled, first_right, "pairs", pairs))
        tasks.append(Task("set", controlled, first_right, "sets", sets))
    return Benchmark("What'sUp", tuple(tasks), str(root), tuple(missing))


def _controlled(file: Path, subset: str, images: Path | None) -> Iterator[tuple[str, str, Item]]:
    """(objects, preposition, item) of each entry."""
    root = file.parent
    near = [root, root / "data", root.parent] if images is None else [images, images.parent]
    pictures = ImageFolders(near)
    for where, row in entries(file):
        path = text_field(row, "image_path", where)
        options = row.get("caption_options")
        if not isinstance(options, list) or len(options) != 4:
            raise DataError(f"{where}: caption_options is {shown(options)}, expected four texts")
        captions = texts(options, "option", where)
        scene = _SCENE.fullmatch(Path(path).stem)
        if scene is None:
            raise DataError(f"{where}: no two objects and preposition in the file name {Path(path).name}")
        preposition = re.sub("in[-_]", "", scene[2])
        if preposition not in captions[0].lower().split():
            raise DataError(
                f"{where}: option 0 is the right one, but {shown(captions[0])} does not say {preposition!r}, "
                f"which the file name {Path(path).name} does"
            )
        picture = pictures.find(path.removeprefix("data/"), where)
        objects, name = f"{subset}/{scene[1]} {scene[3]}", f"{subset}/{Path(path).stem}"
        yield objects, preposition, Item(name, subset, captions, (picture,), where, objects)


def _two_options(file: Path, subset: str, images: Path | None) -> Iterator[Item]:
    coco = file.name.startswith("coco")
    root = file.parent
    near = [root, root.parent] if images is None else [images, images.parent]
    others = ImageFolders([*(place / "vg_images" for place in near), *near])
    pictures = coco_folders(root, images) if coco else others
    for place, (where, row) in enumerate(entries(file)):
        if not isinstance(row, list) or len(row) != 3:
            raise DataError(f"{where} is {shown(row)}, expected [image id, right caption, wrong caption]")
        captions = texts(row[1:], "caption", where)
        name = f"{str(row[0]).zfill(12) if coco else row[0]}.jpg"
        yield Item(f"{subset}/{place}", subset, captions, (pictures.find(name, where),), where, name)
