"""From a folder and a model to the result of a benchmark of fine detail."""

import os
from dataclasses import dataclass
from typing import Any

from diva_rs.evaluation.bank import Bank
from diva_rs.evaluation.detail import DetailResult, score_benchmark
from diva_rs.evaluation.embedder import Combine, Embedder
from diva_rs.evaluation.formats import read_benchmark
from diva_rs.evaluation.measures import evaluating
from diva_rs.evaluation.statistics import check_confidence


@dataclass(frozen=True)
class Scoring:
    """How a benchmark is read and embedded."""

    images: str | os.PathLike[str] | None = None  # the folder of images, where it is not beside the captions
    half: str | None = None  # "validation" or "test": one of two fixed halves of the items
    embedding: str | Combine = "pooled"  # as for `mmvp_vlm`
    seed: int = 0  # of drawn tokens
    batch: int = 64  # images or texts at a time
    progress: bool = False
    confidence: float = 0.95  # of the intervals


def score_folder(
    model: tuple[Any, Any, Any],
    root: str | os.PathLike[str],
    benchmark: str | None,
    kind: str,
    given: dict[str, Any],
) -> DetailResult:
    """Read a benchmark of a kind and score (clip, preprocess, tokenizer) on it."""
    settings = Scoring(**given)
    check_confidence(settings.confidence)
    found = read_benchmark(root, benchmark, settings.images, settings.half, kind)
    with evaluating(model[0]) as clip:
        embedder = Embedder(clip, *model[1:], settings.embedding, settings.seed)
        bank = Bank(embedder, settings.batch, settings.progress)
        return score_benchmark(found, bank, settings.confidence)
