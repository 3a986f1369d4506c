"""MMVP-VLM: does CLIP tell apart images that differ in one visual pattern?

Tong et al., "Eyes Wide Shut?" (arXiv 2401.06209); scored as the official code does (github tsb0601/MMVP,
scripts/evaluate_vlm.py), in float32 and, if tokens are drawn, by seed.
"""

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from diva_rs.data.decode import load
from diva_rs.errors import DataError
from diva_rs.evaluation.embedder import Combine, Embedder
from diva_rs.evaluation.measures import evaluating
from diva_rs.evaluation.mmvp_folder import Question, QuestionPair, read_pairs
from diva_rs.evaluation.mmvp_result import MmvpPair, MmvpVlmResult
from diva_rs.evaluation.statistics import check_confidence


def mmvp_vlm(
    clip: Any,
    preprocess: Any,
    tokenizer: Any,
    root: str | os.PathLike[str],
    embedding: str | Combine = "pooled",
    seed: int = 0,
    confidence: float = 0.95,
    progress: bool = False,
) -> MmvpVlmResult:
    """Score a CLIP on the MMVP-VLM benchmark, by the official rules:

    * Two consecutive rows of Questions.csv are a pair; row order gives the pattern, 15 pairs each.
    * Each statement, as "a photo of " + statement, picks the image of its pair with the larger softmax share
      of ``100 * cosine``. It picks the first row's image if that image's share is *above* one half: a tie
      picks the second.
    * A statement with an odd question id should pick the pair's first image, one with an even id the second.
      With rows in the published order each should pick its own; the tie counts against the odd one, so a
      model that embeds both images alike gets no pair right.
    * A pair counts only if both statements pick rightly; the score is the mean of the nine accuracies.

    Images are read as they are stored (no EXIF rotation), two at a time. The model is scored in eval mode and
    float32; its modes are restored afterwards.

    Args:
        clip: an open_clip, transformers or OpenAI model with its text tower, on its device; for "pooled" any
            object with ``encode_image`` and ``encode_text``.
        preprocess: the model's own transform for validation: PIL image -> (3, H, W); or a transformers
            processor.
        tokenizer: open_clip's, OpenAI's `clip.tokenize`, or a transformers tokenizer or processor.
        root: folder of the benchmark, with Questions.csv and the images folder in any published spelling.
        embedding: a name of `EMBEDDINGS` ("pooled" is the library's own, "official-..." those of published
            scores), or a function of the projected first token (B, D) and patches (B, P, D).
        seed: keys the tokens that "official-openai" and "official-dfn-378" draw for each image.

    A folder that is not as published and an embedding that is not finite raise DataError.

    >>> result = mmvp_vlm(clip, preprocess, tokenizer, mmvp_folder)
    >>> len(result.pairs), len(result.patterns), 0 <= result.average <= 100
    (135, 9, True)
    >>> print(result.compare(result))
    MMVP-VLM: ... of 135 right (+0), ...; 0 gained, 0 lost of 135, exact McNemar p = 1; ...
    """
    check_confidence(confidence)
    pairs = read_pairs(root)
    with evaluating(clip) as model:
        embedder = Embedder(model, preprocess, tokenizer, embedding, seed)
        bar = tqdm(pairs, desc="MMVP-VLM", unit="pair", disable=not progress)
        scored = tuple(_score(embedder, pair) for pair in bar)
    name = embedder.embedding.name
    return MmvpVlmResult(scored, name, type(model).__name__, str(root), seed, confidence)


def _score(embedder: Embedder, pair: QuestionPair) -> MmvpPair:
    first, second = pair.questions
    ids = (first.id, second.id)
    pixels = [_pixels(embedder, *one) for one in zip(pair.images, pair.questions, strict=True)]
    images = embedder.encode_image(torch.stack(pixels).to(embedder.device), ids).float()
    statements = (first.statement, second.statement)
    tokens = embedder.tokenize([f"a photo of {statement}" for statement in statements])
    texts = embedder.encode_text(tokens.to(embedder.device)).float()
    if embedder.embedding.normalized:
        images = normalize(images, dim=-1)
    # For each statement the softmax share of the first image.
    one, two = (100 * normalize(texts, dim=-1) @ images.T).softmax(dim=-1)[:, 0].tolist()
    scores = (one, two)
    if not all(map(math.isfinite, scores)):
        raise DataError(f"the embeddings of {pair.images[0]} and {pair.images[1]} are not finite")
    picked = (1 if scores[0] > 0.5 else 2, 1 if scores[1] > 0.5 else 2)
    expected = (1 if first.id % 2 else 2, 1 if second.id % 2 else 2)
    files = (str(pair.images[0]), str(pair.images[1]))
    return MmvpPair(
        pair.pattern, first.type, ids, statements, files, scores, picked, expected, picked == expected
    )


def _pixels(embedder: Embedder, path: Path, question: Question) -> Tensor:
    return embedder.transform(load(path, f"{path} (question {question.id}, row {question.row})"))
