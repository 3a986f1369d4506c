"""NaturalBench-Retrieval (Li et al., arXiv 2410.14669): a list of pairs in ``metadata.json``, and images."""

from pathlib import Path

from diva_rs.evaluation.items import Benchmark
from diva_rs.evaluation.reading import entries, pairs_of

NAME, KIND, LOOKS_FOR = "naturalbench", "pairs", "metadata.json with image_0, image_1, caption_0, caption_1"


def matches(root: Path) -> bool:
    """Whether there is a metadata.json with pairs."""
    file = root / "metadata.json"
    return file.is_file() and '"caption_0"' in file.read_bytes()[:4096].decode("utf-8", "replace")


def read(root: Path, images: Path | None) -> Benchmark:
    """The pairs of the folder; ids are those of the field ``index``."""
    return pairs_of(entries(root / "metadata.json"), "NaturalBench-Retrieval", root, images)
