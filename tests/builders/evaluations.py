"""Evaluation results with planted outcomes, and a run's record: what reports are made of in the tests."""

import base64
import io
from collections.abc import Collection
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

from diva_rs import PostTrainResult, Recipe
from diva_rs.evaluation import (
    PATTERNS,
    DatasetScore,
    DriftResult,
    FolderResult,
    MmvpPair,
    MmvpVlmResult,
    ProbeScore,
    SuiteResult,
    wilson_interval,
)

PAIRS = 135


def post_trained(recipe: Recipe | None = None, logs: int = 40, **report: Any) -> PostTrainResult:
    """A run's record, its loss falling from 0.5 by 0.001 a log."""
    history = [
        {
            "step": 10.0 * (n + 1),
            "loss": 0.5 - 0.001 * n,
            "denoising": 0.5 - 0.001 * n,
            "grad_norm": 0.25,
            "lr": 1e-4,
            "epoch": float(n // 10),
            "samples": 16.0,
            "samples_per_second": 8.0,
        }
        for n in range(logs)
    ]
    facts = {
        "clip": "CLIP (VisionTransformer)",
        "teacher": "denoiser: UNet2DConditionModel, 866 million parameters\nvae: AutoencoderKL",
        "steps": 10 * logs,
        "samples": 160 * logs,
        "seconds": 800.0,
        "interrupted": False,
        "data": "ImageFolder('photos', 320 images)",
        "device": "cpu",
        "torch": "2.13.0",
    }
    return PostTrainResult(
        history, {**facts, **report}, nn.Linear(2, 2), recipe or Recipe(steps=10 * logs), nn.Linear(2, 2)
    )


def mmvp(right: Collection[int], root: Path | None = None, words: str = "thing") -> MmvpVlmResult:
    """MMVP-VLM with 15 pairs for each pattern, right on the pairs ``right`` alone (numbered from 0).

    With ``root`` the images are there: flat colours.
    """
    pairs = []
    for n in range(PAIRS):
        ids = (2 * n + 1, 2 * n + 2)
        picked = (1, 2) if n in right else (2, 2)
        images = tuple(f"{number}.png" for number in ids)
        for number, name in zip(ids, images, strict=True):
            if root is not None and not (root / name).exists():
                Image.new("RGB", (40, 30), (number % 256, 255 - number % 256, 99)).save(root / name)
        pairs.append(
            MmvpPair(
                pattern=PATTERNS[n // 15],
                type=PATTERNS[n // 15],
                ids=ids,
                statements=(f"{words} {ids[0]}", f"{words} {ids[1]}"),
                images=(images[0], images[1]),
                scores=(0.75 if picked[0] == 1 else 0.25, 0.25),
                picked=picked,
                expected=(1, 2),
                correct=n in right,
            )
        )
    return MmvpVlmResult(tuple(pairs), model="CLIP", root="" if root is None else str(root))


def zero_shot(right: int, total: int = 200, name: str = "cifar10") -> SuiteResult:
    """One data set, the first ``right`` of its images classified rightly; another one is missing."""
    low, high = wilson_interval(right, total)
    outcomes = tuple(n < right for n in range(total))
    score = DatasetScore(name, "acc1", 100 * right / total, (100 * low, 100 * high), total, {}, outcomes)
    return SuiteResult("zero-shot", (score,), {"birdsnap": "clip-benchmark has no such set"}, "CLIP")


def retrieval(value: float) -> SuiteResult:
    """One data set whose metric has no outcome per image."""
    score = DatasetScore("flickr30k", "image_retrieval_recall@5", value, None, 1000, {})
    return SuiteResult("retrieval", (score,), {}, "CLIP")


def folder(right: int, total: int = 50) -> FolderResult:
    """An image folder of one class, the first ``right`` images named rightly."""
    return FolderResult(tuple((f"cat/{n}.jpg", "cat", "cat" if n < right else "dog") for n in range(total)))


def probes(right: int, total: int = 40) -> dict[str, ProbeScore]:
    """What `linear_probe` gives, for one kind of features."""
    low, high = wilson_interval(right, total)
    images = {"train": 80, "validation": 20, "test": total}
    outcomes = tuple(n < right for n in range(total))
    score = ProbeScore("patches", 100 * right / total, (100 * low, 100 * high), 0.1, 55.0, images, outcomes)
    return {"patches": score}


def drift() -> DriftResult:
    """Forty images, moved a little each."""
    cosines = tuple(1 - 0.001 * n for n in range(40))
    return DriftResult(sum(cosines) / 40, min(cosines), 0.97, cosines)


def jpeg_of(uri: str) -> Image.Image:
    """The image of a data URI."""
    head, data = uri.split(",", 1)
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))
