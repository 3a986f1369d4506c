"""MMVP-VLM as pairs: its image score is the published average."""

from pathlib import Path

from torch import Tensor

from diva_rs.evaluation.items import Benchmark, Item, pair_tasks
from diva_rs.evaluation.mmvp_folder import read_pairs
from diva_rs.evaluation.mmvp_vlm import captions_of, first_shares, pictures_of, similarity

NAME, KIND, LOOKS_FOR = "mmvp-vlm", "pairs", "Questions.csv"


def matches(root: Path) -> bool:
    """Whether there is a Questions.csv."""
    return any(file.name.casefold() == "questions.csv" for file in root.iterdir())


def read(root: Path, images: Path | None) -> Benchmark:
    """The pairs; the image score follows the official code, in which a tie picks the second image."""
    items = []
    for place, pair in enumerate(read_pairs(root), 1):
        captions, pictures = captions_of(pair), pictures_of(pair)
        # The statement with the odd id is the one of the first image.
        rows = captions if pair.questions[0].id % 2 else captions[::-1]
        where = f"{root}, rows {pair.questions[0].row} and {pair.questions[1].row} of Questions.csv"
        items.append(Item(str(place), pair.pattern, rows, pictures, where))
    tasks = pair_tasks(items, _official)
    ordered = tuple(tasks[rule] for rule in ("image", "text", "group"))
    # Two at a time, as in `mmvp_vlm`.
    return Benchmark("MMVP-VLM", ordered, str(root), similarity=similarity, batch=2)


def _official(logits: Tensor) -> bool:
    first, second = first_shares(logits)
    return first > 0.5 and not second > 0.5
