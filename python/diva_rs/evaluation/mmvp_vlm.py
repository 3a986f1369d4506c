"""MMVP-VLM: does CLIP tell apart images that differ in one visual pattern?

Tong et al., "Eyes Wide Shut?" (arXiv 2401.06209); scored as the official code does (github tsb0601/MMVP,
scripts/evaluate_vlm.py), in float32 and, if tokens are drawn, by seed.
"""

import os
from typing import Any

from torch import Tensor

from diva_rs.evaluation.bank import Bank
from diva_rs.evaluation.embedder import Combine, Embedder
from diva_rs.evaluation.items import Picture
from diva_rs.evaluation.measures import evaluating
from diva_rs.evaluation.mmvp_folder import QuestionPair, read_pairs
from diva_rs.evaluation.mmvp_result import MmvpPair, MmvpVlmResult
from diva_rs.evaluation.statistics import check_confidence

PROMPT = "a photo of "


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
        # Two at a time, as published: larger batches may differ in the last bit.
        bank = Bank(Embedder(model, preprocess, tokenizer, embedding, seed), 2, progress)
        bank.add(part for pair in pairs for part in (*captions_of(pair), *pictures_of(pair)))
        scored = tuple(_score(bank, pair) for pair in pairs)
    about = (bank.embedder.embedding.name, type(model).__name__, str(root), seed, confidence)
    return MmvpVlmResult(scored, *about, per_second=bank.per_second())


def captions_of(pair: QuestionPair) -> tuple[str, str]:
    """The two statements as the model reads them."""
    first, second = pair.questions
    return PROMPT + first.statement, PROMPT + second.statement


def pictures_of(pair: QuestionPair) -> tuple[Picture, Picture]:
    """The two images; the question's id keys the tokens that are drawn."""
    one, two = (
        Picture(str(path), f"{path} (question {question.id}, row {question.row})", path, question.id)
        for path, question in zip(pair.images, pair.questions, strict=True)
    )
    return one, two


def similarity(texts: Tensor, images: Tensor) -> Tensor:
    """The logits of the official code."""
    return 100 * texts @ images.T


def first_shares(logits: Tensor) -> tuple[float, float]:
    """(2, 2) -> for each statement the softmax share of the first image; it is picked above one half."""
    one, two = logits.softmax(dim=-1)[:, 0].tolist()
    return one, two


def _score(bank: Bank, pair: QuestionPair) -> MmvpPair:
    first, second = pair.questions
    scores = first_shares(similarity(bank.rows(captions_of(pair)), bank.rows(pictures_of(pair))))
    picked = (1 if scores[0] > 0.5 else 2, 1 if scores[1] > 0.5 else 2)
    expected = (1 if first.id % 2 else 2, 1 if second.id % 2 else 2)
    return MmvpPair(
        pair.pattern,
        first.type,
        (first.id, second.id),
        (first.statement, second.statement),
        (str(pair.images[0]), str(pair.images[1])),
        scores,
        picked,
        expected,
        picked == expected,
    )
