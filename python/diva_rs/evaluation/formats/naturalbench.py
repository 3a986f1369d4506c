"""NaturalBench-Retrieval (Li et al., arXiv 2410.14669): a list of pairs in ``metadata.json``, and images."""

from pathlib import Path

from diva_rs.errors import DataError
from diva_rs.evaluation.items import Benchmark, pair_tasks
from diva_rs.evaluation.reading import ImageFolders, pair_item, read_json, text_field

NAME, KIND, LOOKS_FOR = "naturalbench", "pairs", "metadata.json with image_0, image_1, caption_0, caption_1"


def matches(root: Path) -> bool:
    """Whether there is a metadata.json with pairs."""
    file = root / "metadata.json"
    return file.is_file() and '"caption_0"' in file.read_bytes()[:4096].decode("utf-8", "replace")


def read(root: Path, images: Path | None) -> Benchmark:
    """The pairs of the folder; ids are those of the field ``index``."""
    file = root / "metadata.json"
    found = ImageFolders([root, root / "images"] if images is None else [images, images / "images"])
    items = []
    for place, row in enumerate(read_json(file, list)):
        where = f"{file}, entry {place}"
        names = [text_field(row, f"image_{n}", where) for n in (0, 1)]
        pictures = (found.find(names[0], where), found.find(names[1], where))
        if not isinstance(row.get("index"), (int, str)):
            raise DataError(f"{where} has no index")
        items.append(pair_item(row, str(row["index"]), where, pictures))
    tasks = pair_tasks(items)
    ordered = tuple(tasks[rule] for rule in ("group", "text", "image"))
    return Benchmark("NaturalBench-Retrieval", ordered, str(root))
