"""Zero-shot classification and retrieval over clip-benchmark's data sets: what did post-training cost?

A data set is found or downloaded, or missing with the reason, and never skipped.
"""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from diva_rs._base.optional import one_line, require
from diva_rs._base.settings import hint
from diva_rs.errors import ConfigError, DataError, DependencyError, shown
from diva_rs.evaluation.datasets import Opened, Settings, open_dataset
from diva_rs.evaluation.embedder import Embedder, FiniteEmbedder
from diva_rs.evaluation.measures import evaluating
from diva_rs.evaluation.scores import DatasetScore, SuiteResult
from diva_rs.evaluation.statistics import check_confidence, interval_of

# The 27 classification and 2 retrieval sets on which DIVA's paper reports what post-training costs (the list
# is that of EVA-CLIP, arXiv 2303.15389), by their names in clip-benchmark.
SUITES = {
    "diva": {
        "zero-shot": (
            *("imagenet1k", "imagenetv2", "imagenet-a", "imagenet-r", "imagenet_sketch", "objectnet"),
            *("cifar10", "cifar100", "mnist", "caltech101", "sun397", "fgvc_aircraft", "country211", "cars"),
            *("birdsnap", "dtd", "eurosat", "fer2013", "flowers", "food101", "gtsrb", "pcam", "pets"),
            *("renderedsst2", "vtab/resisc45", "stl10", "voc2007"),
        ),
        "retrieval": ("flickr30k", "mscoco_captions"),
    }
}


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

    The result's ``missing`` holds the data sets that were not found, with the reason. Multi-label sets are
    scored by mean average precision, as clip-benchmark does. The model is as for `mmvp_vlm`.

    Args:
        root: a folder with one sub-folder per data set, of its name (a slash is a dash, "wds/" left out), or
            a template such as "data/{dataset_cleaned}/v1", or an address of webdatasets
            ("https://.../{dataset_cleaned}/tree/main").
        datasets: names of clip-benchmark: "cifar10", "imagenet1k", "wds/<name>" for webdatasets, ...
        suite: "diva": the 27 sets of the paper, after those of ``datasets``.
        settings: fields of `Settings`.

    With data sets of clip-benchmark in ``datasets``::

        result = zero_shot(clip, preprocess, tokenizer, "datasets", ["cifar10", "wds/cars"])
        print(result["cifar10"].line)
    """
    return _run("zero-shot", _classify, (clip, preprocess, tokenizer), root, (datasets, suite), settings)


def retrieval(
    clip: Any,
    preprocess: Any,
    tokenizer: Any,
    root: str | os.PathLike[str],
    datasets: str | Sequence[str] = (),
    suite: str | None = None,
    **settings: Any,
) -> SuiteResult:
    """Recall@k of images by text and of texts by image, on data sets of clip-benchmark, in float32.

    The arguments are those of `zero_shot`, and ``recall`` (default 1, 5, 10). The score of a data set is the
    mean of both recalls at the first k of ``recall``; its ``metrics`` hold both for every k.

    With data sets of clip-benchmark in ``datasets``::

        result = retrieval(clip, preprocess, tokenizer, "datasets", suite="diva", recall=(1, 5))
        print(result["flickr30k"].metrics)
    """
    return _run("retrieval", _retrieve, (clip, preprocess, tokenizer), root, (datasets, suite), settings)


def _run(
    task: str,
    score: Callable[[Embedder, Opened, Settings], DatasetScore],
    parts: tuple[Any, Any, Any],
    root: str | os.PathLike[str],
    asked: tuple[str | Sequence[str], str | None],
    given: dict[str, Any],
) -> SuiteResult:
    """Score (clip, preprocess, tokenizer) on every data set that is found."""
    settings = Settings(**given)
    check_confidence(settings.confidence)
    names = _names(task, *asked, settings.webdataset)
    require("clip_benchmark", extra="eval")
    scores: list[DatasetScore] = []
    missing: dict[str, str] = {}
    with evaluating(parts[0]) as model:

        def result() -> SuiteResult:
            kind = type(model).__name__
            return SuiteResult(task, tuple(scores), dict(missing), kind, settings.confidence)

        embedder = FiniteEmbedder(model, *parts[1:])
        for name in names:
            if settings.progress:
                print(f"{task}: {name}", file=sys.stderr)  # clip-benchmark's bars do not name it
            try:
                opened = open_dataset(name, embedder, root, settings, task)
                with _running(embedder.device, settings.progress):
                    scores.append(score(embedder, opened, settings))
            except (torch.OutOfMemoryError, DependencyError, ConfigError):
                raise
            except DataError as err:
                missing[name] = str(err)
            except SystemExit:
                missing[name] = "clip-benchmark exited: a download tool is missing"
            except Exception as err:
                missing[name] = one_line(err)
            if scores and settings.done is not None:
                settings.done(result())
    if not scores:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        raise DataError(f"no data set was found: {reasons}")
    return result()


def _names(task: str, datasets: str | Sequence[str], suite: str | None, webdataset: bool) -> list[str]:
    names = [datasets] if isinstance(datasets, str) else list(datasets)
    if suite is not None:
        if suite not in SUITES:
            near = hint(suite, SUITES) or f": known are {', '.join(SUITES)}"
            raise ConfigError(f"suite={shown(suite)} is not known{near}")
        names += [f"wds/{name}" if webdataset else name for name in SUITES[suite][task]]
    if not names:
        raise ConfigError('no data set is named: give datasets=["cifar10", ...] or suite="diva"')
    return list(dict.fromkeys(names))


@contextlib.contextmanager
def _running(device: torch.device, progress: bool) -> Iterator[None]:
    """clip-benchmark takes a device by its type: on CUDA the model's own is the current one."""
    here = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with here, contextlib.nullcontext() if progress else contextlib.redirect_stderr(io.StringIO()):
        yield


def _classify(embedder: Embedder, opened: Opened, settings: Settings) -> DatasetScore:
    measures = require("clip_benchmark.metrics.zeroshot_classification", extra="eval")
    classes, templates = (getattr(opened.dataset, name, None) for name in ("classes", "templates"))
    if not classes or not templates:
        raise DataError("it has no class names or no templates")
    tokenize, device = embedder.tokenize, embedder.device.type
    classifier = measures.zero_shot_classifier(embedder, tokenize, classes, templates, device, amp=False)
    logits, target = measures.run_classification(embedder, classifier, opened, device, amp=False)
    if target.ndim == 2:
        name = "mean_average_precision"
        precision = 100 * float(measures.average_precision_per_class(logits, target).mean())
        return DatasetScore(opened.name, name, precision, None, opened.images, {name: precision})
    outcomes = (logits.argmax(dim=1) == target).tolist()
    right, items, hit = sum(outcomes), len(outcomes), torch.tensor(outcomes)
    recalls = [float(hit[target == kind].float().mean()) for kind in target.unique()]
    metrics = {"acc1": 100 * right / items, "mean_per_class_recall": 100 * sum(recalls) / len(recalls)}
    if len(classes) >= 5:
        # Not by clip-benchmark's own `accuracy`, which fails under NumPy 2.4 and later.
        hits = (logits.topk(5).indices == target.unsqueeze(1)).any(dim=1)
        metrics["acc5"] = 100 * float(hits.float().mean())
    interval = interval_of(right, items, settings.confidence)
    return DatasetScore(opened.name, "acc1", metrics["acc1"], interval, items, metrics, tuple(outcomes))


def _retrieve(embedder: Embedder, opened: Opened, settings: Settings) -> DatasetScore:
    measures = require("clip_benchmark.metrics.zeroshot_retrieval", extra="eval")
    if getattr(opened.dataset, "classes", None):
        raise DataError("it has class names and no captions: it is a classification set")
    recall, tokenize, device = list(settings.recall), embedder.tokenize, embedder.device.type
    try:
        found = measures.evaluate(embedder, opened, tokenize, device, amp=False, recall_k_list=recall)
    except RuntimeError as err:
        if max(recall) <= opened.images:
            raise
        raise DataError(f"recall@{max(recall)} of {opened.images} images: give a smaller recall") from err
    metrics = {name: 100 * value for name, value in found.items()}
    both = [metrics[f"{side}_retrieval_recall@{recall[0]}"] for side in ("image", "text")]
    return DatasetScore(opened.name, f"mean_recall@{recall[0]}", sum(both) / 2, None, opened.images, metrics)
