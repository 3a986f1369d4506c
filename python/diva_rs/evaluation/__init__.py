"""Does it see better, and what did it lose? Scores of a CLIP before and after post-training.

Every result prints as a table, is written by ``to_json(path)`` and ``to_csv(path)``, and compares itself with
the other model's by ``before.compare(after)``. Scores are in per cent.
"""

import importlib
from typing import Any

from diva_rs.evaluation.bank import Bank
from diva_rs.evaluation.benchmark import SUITES, retrieval, zero_shot
from diva_rs.evaluation.counted import Counted
from diva_rs.evaluation.detail import Decision, DetailResult, score_benchmark
from diva_rs.evaluation.embedder import EMBEDDINGS, Embedder, ImageEmbedding, image_embedding
from diva_rs.evaluation.features import Drift, drift, image_features, linear_cka
from diva_rs.evaluation.formats import find_benchmarks, read_benchmark
from diva_rs.evaluation.formats.mmvp import PATTERNS
from diva_rs.evaluation.items import Benchmark
from diva_rs.evaluation.mmvp_vlm import MmvpPair, MmvpVlmResult, mmvp_vlm
from diva_rs.evaluation.probes import linear_probe
from diva_rs.evaluation.scores import DatasetScore, DriftResult, FolderResult, ProbeScore, SuiteResult
from diva_rs.evaluation.scoring import Scoring, captions, pairs
from diva_rs.evaluation.statistics import (
    Comparison,
    compare_outcomes,
    mcnemar_exact,
    paired_bootstrap,
    smallest_difference,
    wilson_interval,
)
from diva_rs.evaluation.zero_shot_folder import zero_shot_folder

__all__ = [
    "EMBEDDINGS",
    "PATTERNS",
    "SUITES",
    "Bank",
    "Benchmark",
    "Comparison",
    "Counted",
    "DatasetScore",
    "Decision",
    "DetailResult",
    "Drift",
    "DriftResult",
    "Embedder",
    "FolderResult",
    "ImageEmbedding",
    "MmvpPair",
    "MmvpVlmResult",
    "ProbeScore",
    "Scoring",
    "SuiteResult",
    "captions",
    "compare_outcomes",
    "drift",
    "find_benchmarks",
    "image_embedding",
    "image_features",
    "linear_cka",
    "linear_probe",
    "mcnemar_exact",
    "mmvp_vlm",
    "paired_bootstrap",
    "pairs",
    "read_benchmark",
    "retrieval",
    "score_benchmark",
    "smallest_difference",
    "wilson_interval",
    "zero_shot",
    "zero_shot_folder",
]


def __getattr__(name: str) -> Any:
    if name == "report":  # its former place, whose path `diva_rs` keeps importable
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
