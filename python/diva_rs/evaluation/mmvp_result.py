"""What an MMVP-VLM run gives back: every decision, the scores made of them, and how sure they are."""

import csv
import io
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diva_rs._base.arguments import as_path, of_type
from diva_rs._base.checkpoint import write_json, write_text
from diva_rs.errors import DataError
from diva_rs.evaluation.statistics import Comparison, compare_outcomes, wilson_interval

# In the order in which the official code gives them to blocks of 15 pairs of rows.
PATTERNS = (
    "Orientation and Direction",
    "Presence of Specific Features",
    "State and Condition",
    "Quantity and Count",
    "Positional and Relational Context",
    "Color and Appearance",
    "Structural Characteristics",
    "Texts",
    "Viewpoint and Perspective",
)

# The first eight are those of the official script's output.
_COLUMNS = (
    *("qid1", "qid2", "pred1", "pred2", "gt1", "gt2", "q1score", "q2score"),
    *("correct", "pattern", "type", "statement1", "statement2", "image1", "image2"),
)


@dataclass(frozen=True)
class MmvpPair:
    """One pair of images and the two decisions on it.

    Attributes:
        pattern: one of `PATTERNS`, by the pair's place in the file.
        type: as the file spells it.
        ids: question ids of the two rows.
        statements: without "a photo of ".
        images: the two files, first row's first.
        scores: for each statement, the softmax share of the first image, in [0, 1].
        picked: for each statement, the image it picks: 1 or 2.
        expected: for each statement, the image it should pick: 1 for an odd id, 2 for an even one.
        correct: both picked as expected.
    """

    pattern: str
    type: str
    ids: tuple[int, int]
    statements: tuple[str, str]
    images: tuple[str, str]
    scores: tuple[float, float]
    picked: tuple[int, int]
    expected: tuple[int, int]
    correct: bool

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class MmvpVlmResult:
    """The score of one model on MMVP-VLM.

    Attributes:
        pairs: every pair in file order.
        embedding: which image embedding was scored.
        model: the class of the model, for tables.
        root: the benchmark's folder.
        seed: of the drawn tokens, where the embedding draws any.
        confidence: of the intervals.
    """

    pairs: tuple[MmvpPair, ...]
    embedding: str = "pooled"
    model: str = ""
    root: str = ""
    seed: int = 0
    confidence: float = 0.95

    @property
    def right(self) -> int:
        """How many pairs are correct."""
        return sum(pair.correct for pair in self.pairs)

    @property
    def average(self) -> float:
        """Mean of the nine pattern accuracies, in per cent: the published number."""
        return sum(self.patterns.values()) / len(self.patterns)

    @property
    def patterns(self) -> dict[str, float]:
        """Accuracy of each visual pattern in per cent, in the official order."""
        return {name: 100 * right / total for name, (right, total) in self.counts.items()}

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """(correct pairs, pairs) of each pattern."""
        counts = dict.fromkeys((pair.pattern for pair in self.pairs), (0, 0))
        for pair in self.pairs:
            right, total = counts[pair.pattern]
            counts[pair.pattern] = (right + pair.correct, total + 1)
        return counts

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson interval of the average in per cent; all patterns have the same number of pairs."""
        return _per_cent(wilson_interval(self.right, len(self.pairs), self.confidence))

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Wilson interval of each pattern in per cent."""
        return {
            name: _per_cent(wilson_interval(right, total, self.confidence))
            for name, (right, total) in self.counts.items()
        }

    def compare(self, other: "MmvpVlmResult", resamples: int = 10_000, seed: int = 0) -> Comparison:
        """This model (before) against ``other`` (after) on the same pairs.

        Raises:
            DataError: the two were not scored on the same statements in the same order.
        """
        of_type("other", other, MmvpVlmResult, "the result of mmvp_vlm for the other model")
        mine, theirs = [pair.statements for pair in self.pairs], [pair.statements for pair in other.pairs]
        if mine != theirs:
            raise DataError(
                f"the results are of different pairs ({len(mine)} from {self.root}, {len(theirs)} from "
                f"{other.root}): score both models on the same folder"
            )
        return compare_outcomes(
            [pair.correct for pair in self.pairs],
            [pair.correct for pair in other.pairs],
            "MMVP-VLM",
            self.confidence,
            resamples,
            seed,
        )

    def __str__(self) -> str:
        title = f"MMVP-VLM ({self.embedding})"
        width = max(map(len, [*self.patterns, title]))
        lines = [
            f"{title:<{width}}  {'right':>7}      %   {self.confidence:.0%} interval",
            *(
                f"{name:<{width}}  {right:>3}/{total:<3}  {100 * right / total:5.1f}   {_range(interval)}"
                for (name, (right, total)), interval in zip(
                    self.counts.items(), self.intervals.values(), strict=True
                )
            ),
            f"{'average':<{width}}  {self.right:>3}/{len(self.pairs):<3}  {self.average:5.1f}   "
            f"{_range(self.interval)}",
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Scores, intervals and every pair, for JSON; per cent throughout, scores as shares."""
        return {
            "benchmark": "MMVP-VLM",
            "model": self.model,
            "embedding": self.embedding,
            "root": self.root,
            "seed": self.seed,
            "confidence": self.confidence,
            "average": self.average,
            "interval": self.interval,
            "patterns": self.patterns,
            "intervals": self.intervals,
            "pairs": [pair.to_dict() for pair in self.pairs],
        }

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write `to_dict` atomically; returns the path. Raises DataError where it cannot be written."""
        place = as_path(path)
        write_json(place, self.to_dict())
        return place

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write one row per pair atomically; returns the path.

        The first eight columns are those of the official script's output.

        Raises:
            DataError: it cannot be written.
        """
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(_COLUMNS)
        for pair in self.pairs:
            decisions = [f"img{number}" for number in (*pair.picked, *pair.expected)]
            told = [int(pair.correct), pair.pattern, pair.type, *pair.statements, *pair.images]
            rows.writerow([*pair.ids, *decisions, *pair.scores, *told])
        place = as_path(path)
        write_text(place, text.getvalue())
        return place


def _per_cent(interval: tuple[float, float]) -> tuple[float, float]:
    return 100 * interval[0], 100 * interval[1]


def _range(interval: tuple[float, float]) -> str:
    return f"{interval[0]:5.1f} to {interval[1]:5.1f}"
