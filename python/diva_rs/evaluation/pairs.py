"""Two images and two captions: does CLIP match them, from either side?"""

import os
from typing import Any

from diva_rs.evaluation.detail import DetailResult
from diva_rs.evaluation.scoring import score_folder


def pairs(
    clip: Any,
    preprocess: Any,
    tokenizer: Any,
    root: str | os.PathLike[str],
    benchmark: str | None = None,
    **settings: Any,
) -> DetailResult:
    """Score pairs of images with a caption each: MMVP-VLM, NaturalBench-Retrieval, Winoground, VisMin, yours.

    * "text": for both images the own caption is more similar than the other one.
    * "image": for both captions the own image is more similar than the other one.
    * "group": both. It is the score of the result; ``result["text"]`` and ``result["image"]`` are the others.

    A tie counts as wrong. MMVP-VLM's score is "image", by the rules of its official code (see `mmvp_vlm`), in
    which a tie picks the second image.

    Args:
        clip, preprocess, tokenizer: as for `mmvp_vlm`.
        root: the folder, in the published format, or one with a ``pairs.jsonl``: an object per line with
            ``image_0``, ``image_1`` (paths relative to the folder), ``caption_0``, ``caption_1``, and
            optionally ``category`` and ``id``.
        benchmark: "mmvp-vlm", "naturalbench", "winoground", "vismin" or "pairs"; by default the format that
            the folder's files show.
        settings: fields of `Scoring`.

    A missing image or field, an id or key that is there twice, and equal captions raise DataError.

    >>> result = pairs(clip, preprocess, tokenizer, mmvp_folder)
    >>> result.asked, list(result.rules), result.kind
    (135, ['image', 'text', 'group'], 'detail')
    """
    return score_folder((clip, preprocess, tokenizer), root, benchmark, "pairs", settings)
