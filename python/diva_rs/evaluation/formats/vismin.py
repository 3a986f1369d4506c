"""VisMin (Awal et al., arXiv 2407.16772): 2,084 pairs with a minimal change, in parquet.

Some published rows are reported to have their images swapped; scores are those of the rows as they are.
"""

from pathlib import Path

from diva_rs.evaluation.items import Benchmark
from diva_rs.evaluation.reading import pairs_of
from diva_rs.evaluation.tables import columns, rows_of

NAME, KIND = "vismin", "pairs"
LOOKS_FOR = "parquet or a saved datasets folder with image_0, image_1, caption_0, caption_1, category"


def matches(root: Path) -> bool:
    """Whether there is a table with pairs and categories, its captions under either name."""
    found = columns(root)
    return {"image_0", "category"} <= found and bool({"caption_0", "text_0"} & found)


def read(root: Path, images: Path | None) -> Benchmark:
    """The pairs; categories are the kinds of change."""
    return pairs_of(rows_of(root), "VisMin", root, images)
