"""MMVP-VLM: pairs of images that differ in one visual pattern.

Tong et al., "Eyes Wide Shut?" (arXiv 2401.06209); scored as the official code does (github tsb0601/MMVP,
scripts/evaluate_vlm.py), in float32 and, if tokens are drawn, by seed.
"""

import os
from dataclasses import dataclass, field
from typing import Any

from diva_rs.evaluation.bank import Bank
from diva_rs.evaluation.counted import Counted, counted_table
from diva_rs.evaluation.embedder import Combine, Embedder
from diva_rs.evaluation.formats.mmvp import QuestionPair, first_shares, read_pairs, similarity
from diva_rs.evaluation.measures import evaluating
from diva_rs.evaluation.result import Result
from diva_rs.evaluation.statistics import check_confidence

# The first eight are those of the official script's output.
_COLUMNS = (
    *("qid1", "qid2", "pred1", "pred2", "gt1", "gt2", "q1score", "q2score"),
    *("correct", "pattern", "type", "statement1", "statement2", "image1", "image2"),
)


@dataclass(frozen=True)
class MmvpPair(Result):
    """One pair of images and the two decisions on it."""

    pattern: str  # one of `PATTERNS`, by the pair's place in the file
    type: str  # as the file spells it
    ids: tuple[int, int]  # question ids of the two rows
    statements: tuple[str, str]  # without "a photo of "
    images: tuple[str, str]  # the two files, first row's first
    scores: tuple[float, float]  # for each statement, the softmax share of the first image, in [0, 1]
    picked: tuple[int, int]  # for each statement, the image it picks: 1 or 2
    expected: tuple[int, int]  # the image it should pick: 1 for an odd id, 2 for an even one
    correct: bool  # both picked as expected

    @classmethod
    def of(cls, ids: tuple[int, int], scores: tuple[float, float], **about: Any) -> "MmvpPair":
        """The decisions of a pair with these question ids and softmax shares of the first image."""
        picked = (1 if scores[0] > 0.5 else 2, 1 if scores[1] > 0.5 else 2)
        expected = (1 if ids[0] % 2 else 2, 1 if ids[1] % 2 else 2)
        decided = picked == expected
        return cls(ids=ids, scores=scores, picked=picked, expected=expected, correct=decided, **about)


@dataclass(frozen=True)
class MmvpVlmResult(Counted):
    """The score of one model on MMVP-VLM; the published number is `average`, over the nine patterns."""

    pairs: tuple[MmvpPair, ...]  # in file order
    embedding: str = "pooled"  # which image embedding was scored
    model: str = ""  # its class
    root: str = ""  # the benchmark's folder
    seed: int = 0  # of the drawn tokens, if the embedding draws any
    confidence: float = 0.95  # of the intervals
    name: str = "MMVP-VLM"
    is_test_set: bool = True
    per_second: dict[str, float] = field(default_factory=dict, compare=False)  # images, texts embedded
    kind = "detail"
    unit = "pairs"
    computed = ("benchmark", "right", "asked", "interval", "average", "patterns", "intervals")

    @property
    def benchmark(self) -> str:
        """The name."""
        return self.name

    @property
    def answers(self) -> tuple[tuple[Any, str, bool], ...]:
        return tuple((pair.statements, pair.pattern, pair.correct) for pair in self.pairs)

    @property
    def per_cent(self) -> float:
        return self.average

    @property
    def patterns(self) -> dict[str, float]:
        """Accuracy of each visual pattern in per cent, in the official order."""
        return self.shares

    def __str__(self) -> str:
        rows = [*self.counts.items(), ("average", (self.right, self.asked))]
        return counted_table(rows, self.unit, self.confidence, f"{self.name} ({self.embedding})")

    def records(self) -> list[dict[str, Any]]:
        """One row per pair. The first eight columns are those of the official script's output."""
        rows = []
        for pair in self.pairs:
            decisions = [f"img{number}" for number in (*pair.picked, *pair.expected)]
            about = (int(pair.correct), pair.pattern, pair.type, *pair.statements, *pair.images)
            rows.append(dict(zip(_COLUMNS, (*pair.ids, *decisions, *pair.scores, *about), strict=True)))
        return rows


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
    float32; its modes are restored afterwards. A folder that is not as published and an embedding that is not
    finite raise DataError.

    Args:
        clip: an open_clip, transformers or OpenAI model with its text tower, on its device; for "pooled" any
            object with ``encode_image`` and ``encode_text``.
        preprocess: the model's own transform for validation (PIL image -> (3, H, W)), or a processor.
        tokenizer: open_clip's, OpenAI's `clip.tokenize`, or a transformers tokenizer or processor.
        root: folder of the benchmark, with Questions.csv and the images folder in any published spelling.
        embedding: a name of `EMBEDDINGS` ("pooled" is the library's own, "official-..." those of published
            scores), or a function of the projected first token (B, D) and patches (B, P, D).
        seed: keys the tokens that "official-openai" and "official-dfn-378" draw for each image.

    >>> clip, preprocess, tokenizer = diva_rs.microworld.example("clip", "preprocess", "tokenizer")
    >>> folder = diva_rs.microworld.write_mmvp(tempfile.mkdtemp())
    >>> result = mmvp_vlm(clip, preprocess, tokenizer, folder)
    >>> len(result.pairs), len(result.patterns), 0 <= result.average <= 100
    (18, 9, True)
    >>> print(result.compare(result))
    MMVP-VLM: ... of 18 right (+0), ...; 0 gained, 0 lost of 18, exact McNemar p = 1; ...
    """
    check_confidence(confidence)
    pairs = read_pairs(root)
    with evaluating(clip) as model:
        # Two at a time, as published: larger batches may differ in the last bit.
        bank = Bank(Embedder(model, preprocess, tokenizer, embedding, seed), 2, progress)
        bank.add(part for pair in pairs for part in (*pair.captions, *pair.pictures))
        scored = tuple(_score(bank, pair) for pair in pairs)
    about = (bank.embedder.embedding.name, type(model).__name__, str(root), seed, confidence)
    return MmvpVlmResult(scored, *about, per_second=bank.per_second())


def _score(bank: Bank, pair: QuestionPair) -> MmvpPair:
    first, second = pair.questions
    return MmvpPair.of(
        (first.id, second.id),
        first_shares(similarity(bank.rows(pair.captions), bank.rows(pair.pictures))),
        pattern=pair.pattern,
        type=first.type,
        statements=(first.statement, second.statement),
        images=(pair.pictures[0].key, pair.pictures[1].key),
    )
