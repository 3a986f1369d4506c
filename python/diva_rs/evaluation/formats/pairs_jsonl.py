"""Any folder with a ``pairs.jsonl``: one object per line with two images and their captions.

image_0, image_1      paths of the images, relative to the folder; read as training images are: turned upright
                      by their EXIF data, and as RGB of 8 bits
caption_0, caption_1  the caption of each
category              optional: what the pair tests, for the scores by category
id                    optional: its name in results, by default the number of the line
"""

from pathlib import Path

from diva_rs.evaluation.items import Benchmark
from diva_rs.evaluation.reading import pairs_of, read_json_lines

NAME, KIND, LOOKS_FOR = "pairs", "pairs", "pairs.jsonl"


def matches(root: Path) -> bool:
    """Whether there is a pairs.jsonl."""
    return (root / "pairs.jsonl").is_file()


def read(root: Path, images: Path | None) -> Benchmark:
    """The pairs of the folder, which is no published test set."""
    rows = read_json_lines(root / "pairs.jsonl")
    return pairs_of(rows, root.resolve().name, root, images, published=False)
