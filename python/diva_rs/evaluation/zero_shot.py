"""Zero-shot classification over clip-benchmark's data sets: what did post-training cost?"""

import os
from collections.abc import Sequence
from typing import Any

from diva_rs._base.optional import require
from diva_rs.errors import DataError
from diva_rs.evaluation.benchmark import Opened, Settings, device_name, quiet, run_suite
from diva_rs.evaluation.embedder import Embedder
from diva_rs.evaluation.scores import DatasetScore, SuiteResult
from diva_rs.evaluation.statistics import wilson_interval


def zero_shot(
    clip: Any,
    preprocess: Any,
    tokenizer: Any,
    root: str | os.PathLike[str],
    datasets: str | Sequence[str] = (),
    suite: str | None = None,
    **settings: Any,
) -> SuiteResult:
    """Zero-shot accuracy on data sets of clip-benchmark, with its class names and templates, in float32.

    A data set that cannot be had stands in the result's ``missing`` with the reason. Multi-label sets are
    scored by mean average precision, as clip-benchmark does.

    Args:
        clip, preprocess, tokenizer: as for `mmvp_vlm`.
        root: a folder with one sub-folder per data set, of its name (a slash is a dash, "wds/" left out), or
            a template such as "data/{dataset_cleaned}/v1", or an address of webdatasets
            ("https://.../{dataset_cleaned}/tree/main").
        datasets: names of clip-benchmark: "cifar10", "imagenet1k", "wds/<name>" for webdatasets, ...
        suite: "diva": the 27 sets of the paper, after those of ``datasets``.
        settings: fields of `Settings`: split, batch, workers, download (default False), webdataset,
            confidence, progress.

    Raises:
        DataError: none of the data sets could be had.
        ConfigError: no data set named, an unknown suite or setting.
        DependencyError: clip-benchmark is not installed.

    >>> result = zero_shot(clip, preprocess, tokenizer, shapes_folder, "wds/shapes", progress=False)
    >>> result["wds/shapes"].metric, result["wds/shapes"].items
    ('acc1', 8)
    """
    return run_suite("zero-shot", _score, (clip, preprocess, tokenizer), root, datasets, suite, settings)


def _score(embedder: Embedder, opened: Opened, settings: Settings) -> DatasetScore:
    measures = require("clip_benchmark.metrics.zeroshot_classification", extra="eval")
    classes, templates = getattr(opened.dataset, "classes", None), getattr(opened.dataset, "templates", None)
    if not classes or not templates:
        raise DataError("it has no class names or no templates")
    with device_name(embedder) as device, quiet(settings):
        classifier = measures.zero_shot_classifier(
            embedder, embedder.tokenize, classes, templates, device, amp=False
        )
        logits, target = measures.run_classification(embedder, classifier, opened.batches, device, amp=False)
    if target.ndim == 2:
        precision = 100 * float(measures.average_precision_per_class(logits, target).mean())
        metrics = {"mean_average_precision": precision}
        return DatasetScore(
            opened.name, "mean_average_precision", precision, None, opened.batches.images, metrics
        )
    picked = logits.argmax(dim=1)
    outcomes = (picked == target).tolist()
    right = sum(outcomes)
    recalls = [float((picked[target == kind] == kind).float().mean()) for kind in target.unique()]
    metrics = {
        "acc1": 100 * right / len(outcomes),
        "mean_per_class_recall": 100 * sum(recalls) / len(recalls),
    }
    if len(classes) >= 5:
        # Not by clip-benchmark's own `accuracy`, which fails under NumPy 2.4 and later.
        hits = (logits.topk(5).indices == target.unsqueeze(1)).any(dim=1)
        metrics["acc5"] = 100 * float(hits.float().mean())
    low, high = wilson_interval(right, len(outcomes), settings.confidence)
    return DatasetScore(
        opened.name,
        "acc1",
        metrics["acc1"],
        (100 * low, 100 * high),
        len(outcomes),
        metrics,
        tuple(outcomes),
    )
