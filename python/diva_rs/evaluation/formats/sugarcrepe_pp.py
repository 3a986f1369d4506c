"""SugarCrepe++ (Dumpala et al., arXiv 2406.11171): two captions with one meaning, and a negative."""

from pathlib import Path

from torch import Tensor

from diva_rs.errors import DataError
from diva_rs.evaluation.formats.sugarcrepe import PUBLISHED, files_of
from diva_rs.evaluation.items import Benchmark, Item, Task
from diva_rs.evaluation.reading import coco_folders, entries, text_field

NAME, KIND = "sugarcrepe++", "captions"
LOOKS_FOR = "replace_att.json, swap_obj.json, ... that hold lists"
_SUBSETS = tuple(name for name in PUBLISHED if not name.startswith("add_"))


def matches(root: Path) -> bool:
    """Whether there is a file of a subset that holds a list."""
    return bool(files_of(root, "["))


def read(root: Path, images: Path | None) -> Benchmark:
    """The items of all subsets that are there, from image to text and among texts alone."""
    files, pictures = files_of(root, "["), coco_folders(root, images)
    seeing, reading = [], []
    for subset, file in files.items():
        for where, row in entries(file):
            one, two, negative = (
                text_field(row, field, where) for field in ("caption", "caption2", "negative_caption")
            )
            if not isinstance(row.get("id"), (int, str)):
                raise DataError(f"{where} has no id")
            name = text_field(row, "filename", where)
            about = (f"{subset}/{row['id']}", subset)
            seeing.append(Item(*about, (one, two, negative), (pictures.find(name, where),), where, name))
            reading.append(Item(*about, (one, two), (two, negative), where, name))
    tasks = (Task("image-to-text", tuple(seeing), _both_beat), Task("text-only", tuple(reading), _alike))
    missing = tuple(name for name in _SUBSETS if name not in files)
    return Benchmark("SugarCrepe++", tasks, str(root), missing)


def _both_beat(m: Tensor) -> bool:
    """(two captions and the negative, image): both captions are more similar than the negative."""
    return bool(m[:2].min() > m[2, 0])


def _alike(m: Tensor) -> bool:
    """(captions, second caption and negative): the captions are more similar than either to the negative."""
    return bool(m[0, 0] > m[0, 1] and m[0, 0] > m[1, 1])
