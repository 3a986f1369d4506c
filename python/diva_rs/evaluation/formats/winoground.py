"""Winoground (Thrush et al., arXiv 2204.03162): 400 pairs in parquet or a saved ``datasets`` folder."""

from pathlib import Path

from diva_rs.evaluation.items import Benchmark
from diva_rs.evaluation.reading import pairs_of
from diva_rs.evaluation.tables import columns, rows_of

NAME, KIND = "winoground", "pairs"
LOOKS_FOR = "parquet or a saved datasets folder with image_0, image_1, caption_0, caption_1, collapsed_tag"


def matches(root: Path) -> bool:
    """Whether there is a table with pairs and tags."""
    return {"image_0", "caption_0", "collapsed_tag"} <= columns(root)


def read(root: Path, images: Path | None) -> Benchmark:
    """The pairs; categories are the collapsed tags."""
    return pairs_of(rows_of(root), "Winoground", root, images, "collapsed_tag")
