"""Scores of fine detail: which of two captions belongs to which of two images, which of several fits one."""

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

    ``root`` is the folder in the published format, or one with a ``pairs.jsonl``: an object per line with
    ``image_0``, ``image_1`` (paths relative to the folder), ``caption_0``, ``caption_1``, and optionally
    ``category`` and ``id``. ``benchmark`` is "mmvp-vlm", "naturalbench", "winoground", "vismin" or "pairs";
    by default the format that the folder's files show. The model is as for `mmvp_vlm`; ``settings`` are
    fields of `Scoring`. A missing image or field, an id or key that is there twice, and equal captions raise
    DataError.

    >>> clip, preprocess, tokenizer = diva_rs.microworld.example("clip", "preprocess", "tokenizer")
    >>> folder = diva_rs.microworld.write_mmvp(tempfile.mkdtemp())
    >>> result = pairs(clip, preprocess, tokenizer, folder)
    >>> result.asked, list(result.rules), result.kind
    (18, ['image', 'text', 'group'], 'detail')
    """
    return _score((clip, preprocess, tokenizer), root, benchmark, "pairs", Scoring(**settings))


def captions(
    clip: Any,
    preprocess: Any,
    tokenizer: Any,
    root: str | os.PathLike[str],
    benchmark: str | None = None,
    **settings: Any,
) -> DetailResult:
    """Score the choice among captions or images: SugarCrepe, SugarCrepe++, What'sUp, SPEC.

    * SugarCrepe: the caption beats the negative.
    * SugarCrepe++: "image-to-text": both captions beat the negative; ``result["text-only"]``: the captions
      are more similar to each other than either is to the negative.
    * What'sUp: "single": the right one of the options; ``result["pair"]`` and ``result["set"]``: all
      photographs of two opposite prepositions, or of the same two objects, are right.
    * SPEC: "image2text"; ``result["text2image"]``.

    A tie counts as wrong. Categories are the subsets; ``result.missing`` names published ones that are not
    there. ``benchmark`` is "sugarcrepe", "sugarcrepe++", "whatsup" or "spec"; of the settings, ``images`` is
    the folder of COCO's val2017 or of Visual Genome, if it is neither in the folder nor beside it. The rest
    is as for `pairs`; a gap in the keys and a wrong label raise DataError as well.

    >>> import json, tempfile
    >>> clip, preprocess, tokenizer = diva_rs.microworld.example("clip", "preprocess", "tokenizer")
    >>> folder = diva_rs.microworld.write_photos(tempfile.mkdtemp())
    >>> texts = {"caption": "a photo of a fish", "negative_caption": "a photo of a cup"}
    >>> files = [str(file.relative_to(folder)) for file in folder.rglob("*.png")]
    >>> items = {str(n): {"filename": file, **texts} for n, file in enumerate(files)}
    >>> _ = (folder / "replace_obj.json").write_text(json.dumps(items))
    >>> print(captions(clip, preprocess, tokenizer, folder, images=folder).line)
    SugarCrepe (image-to-text)  ... of 16 items right  [...]  ... %
    """
    return _score((clip, preprocess, tokenizer), root, benchmark, "captions", Scoring(**settings))


def _score(
    model: tuple[Any, Any, Any],
    root: str | os.PathLike[str],
    benchmark: str | None,
    kind: str,
    settings: Scoring,
) -> DetailResult:
    check_confidence(settings.confidence)
    found = read_benchmark(root, benchmark, settings.images, settings.half, kind)
    with evaluating(model[0]) as clip:
        embedder = Embedder(clip, *model[1:], settings.embedding, settings.seed)
        bank = Bank(embedder, settings.batch, settings.progress)
        return score_benchmark(found, bank, settings.confidence)
