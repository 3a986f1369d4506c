"""Any folder with a ``pairs.jsonl``: one object per line with two images and their captions.

image_0, image_1      paths of the images, relative to the folder
caption_0, caption_1  the caption of each
category              optional: what the pair tests, for the scores by category
id                    optional: its name in results, by default the number of the line
"""

from pathlib import Path

from diva_rs.evaluation.items import Benchmark, pair_tasks
from diva_rs.evaluation.reading import ImageFolders, pair_item, read_json_lines, text_field

NAME, KIND, LOOKS_FOR = "pairs", "pairs", "pairs.jsonl"


def matches(root: Path) -> bool:
    """Whether there is a pairs.jsonl."""
    return (root / "pairs.jsonl").is_file()


def read(root: Path, images: Path | None) -> Benchmark:
    """The pairs of the folder, which is no published test set."""
    found = ImageFolders([root] if images is None else [images])
    items = []
    for where, row in read_json_lines(root / "pairs.jsonl"):
        names = [text_field(row, f"image_{n}", where) for n in (0, 1)]
        pictures = (found.find(names[0], where), found.find(names[1], where))
        category = text_field(row, "category", where) if row.get("category") is not None else ""
        number = row.get("id")
        name = where.rpartition(" ")[2] if number is None else str(number)
        items.append(pair_item(row, name, where, pictures, category))
    tasks = pair_tasks(items)
    ordered = tuple(tasks[rule] for rule in ("group", "text", "image"))
    return Benchmark(root.resolve().name, ordered, str(root), is_test_set=False)
