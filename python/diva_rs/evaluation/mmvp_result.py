"""The result of MMVP-VLM: every decision, the scores made of them, and how sure they are."""

from dataclasses import dataclass, field
from typing import Any

from diva_rs.evaluation.counted import Counted, counted_table
from diva_rs.evaluation.result import Result

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


@dataclass(frozen=True)
class MmvpVlmResult(Counted):
    """The score of one model on MMVP-VLM."""

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

    @property
    def outcomes(self) -> tuple[bool, ...]:
        """For each pair, in file order, whether it is correct."""
        return tuple(pair.correct for pair in self.pairs)

    @property
    def identities(self) -> tuple[Any, ...]:
        """The statements of each pair."""
        return tuple(pair.statements for pair in self.pairs)

    @property
    def categories(self) -> tuple[str, ...]:
        """The pattern of each pair."""
        return tuple(pair.pattern for pair in self.pairs)

    @property
    def average(self) -> float:
        """Mean of the nine pattern accuracies, in per cent: the published number."""
        return sum(self.patterns.values()) / len(self.patterns)

    @property
    def per_cent(self) -> float:
        """The average."""
        return self.average

    @property
    def patterns(self) -> dict[str, float]:
        """Accuracy of each visual pattern in per cent, in the official order."""
        return {name: 100 * right / total for name, (right, total) in self.counts.items()}

    def __str__(self) -> str:
        rows = [*self.counts.items(), ("average", (self.right, self.asked))]
        return counted_table(rows, self.unit, self.confidence, f"{self.name} ({self.embedding})")

    def to_dict(self) -> dict[str, Any]:
        """Scores, intervals and every pair, for JSON; in per cent, except the pairs' shares."""
        facts = ("model", "embedding", "root", "seed", "confidence", "is_test_set", "per_second")
        scores = ("right", "asked", "interval", "average", "patterns", "intervals")
        return {
            "benchmark": self.name,
            **{name: getattr(self, name) for name in facts + scores},
            "pairs": [pair.to_dict() for pair in self.pairs],
        }

    def records(self) -> list[dict[str, Any]]:
        """One row per pair. The first eight columns are those of the official script's output."""
        rows = []
        for pair in self.pairs:
            decisions = [f"img{number}" for number in (*pair.picked, *pair.expected)]
            about = [int(pair.correct), pair.pattern, pair.type, *pair.statements, *pair.images]
            rows.append([*pair.ids, *decisions, *pair.scores, *about])
        return [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
