"""Image and text retrieval over clip-benchmark's data sets."""

import os
from collections.abc import Sequence
from typing import Any

from diva_rs._base.optional import require
from diva_rs.errors import DataError
from diva_rs.evaluation.benchmark import Opened, Settings, device_name, quiet, run_suite
from diva_rs.evaluation.embedder import Embedder
from diva_rs.evaluation.scores import DatasetScore, SuiteResult


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

    The score of a data set is the mean of both recalls at the first k of ``recall``; both stand in its
    ``metrics`` for every k. A data set that cannot be had stands in ``missing`` with the reason.

    Args:
        clip, preprocess, tokenizer: as for `mmvp_vlm`.
        root: where the data sets are, as for `zero_shot`.
        datasets: names of clip-benchmark: "flickr30k", "mscoco_captions", "wds/<name>", ...
        suite: "diva": the 2 sets of the paper, after those of ``datasets``.
        settings: fields of `Settings`: recall (default 1, 5, 10), split, batch, workers, download,
            webdataset, progress.

    Raises as :func:`zero_shot`.

    >>> result = retrieval(
    ...     clip, preprocess, tokenizer, captions_folder, "wds/captions", recall=(1, 2), progress=False
    ... )
    >>> result["wds/captions"].metric, sorted(result["wds/captions"].metrics)[0]
    ('mean_recall@1', 'image_retrieval_recall@1')
    """
    return run_suite("retrieval", _score, (clip, preprocess, tokenizer), root, datasets, suite, settings)


def _score(embedder: Embedder, opened: Opened, settings: Settings) -> DatasetScore:
    measures = require("clip_benchmark.metrics.zeroshot_retrieval", extra="eval")
    if getattr(opened.dataset, "classes", None):
        raise DataError("it has class names and no captions: it is a classification set")
    with device_name(embedder) as device, quiet(settings):
        try:
            found = measures.evaluate(
                embedder,
                opened.batches,
                embedder.tokenize,
                device,
                amp=False,
                recall_k_list=list(settings.recall),
            )
        except RuntimeError as err:
            images, most = opened.batches.images, max(settings.recall)
            if most <= images:
                raise
            raise DataError(f"recall@{most} of {images} images: give a smaller recall") from err
    metrics = {name: 100 * value for name, value in found.items()}
    first = settings.recall[0]
    both = [metrics[f"{side}_retrieval_recall@{first}"] for side in ("image", "text")]
    return DatasetScore(
        opened.name, f"mean_recall@{first}", sum(both) / 2, None, opened.batches.images, metrics
    )
