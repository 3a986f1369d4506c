"""The result of MMVP-VLM: every decision, the scores made of them, and how sure they are."""

from dataclasses import dataclass
from typing import Any

from diva_rs.errors import DataError
from diva_rs.evaluation.result import Result
from diva_rs.evaluation.statistics import Comparison, compare_outcomes, interval_of, tally

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
class MmvpVlmResult(Result):
    """The score of one model on MMVP-VLM."""

    pairs: tuple[MmvpPair, ...]  # in file order
    embedding: str = "pooled"  # which image embedding was scored
    model: str = ""  # its class
    root: str = ""  # the benchmark's folder
    seed: int = 0  # of the drawn tokens, if the embedding draws any
    confidence: float = 0.95  # of the intervals

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
        return tally((pair.pattern, pair.correct) for pair in self.pairs)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson interval of the average in per cent; all patterns have the same number of pairs."""
        return interval_of(self.right, len(self.pairs), self.confidence)

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Wilson interval of each pattern in per cent."""
        return {name: interval_of(*counts, self.confidence) for name, counts in self.counts.items()}

    def compare(self, other: "MmvpVlmResult", resamples: int = 10_000, seed: int = 0) -> Comparison:
        """This model (before) against ``other`` (after), scored on the same statements in the same order."""
        mine, theirs = [pair.statements for pair in self.pairs], [pair.statements for pair in other.pairs]
        if mine != theirs:
            raise DataError(f"the results are of different pairs, from {self.root} and {other.root}")
        before, after = ([pair.correct for pair in result.pairs] for result in (self, other))
        return compare_outcomes(before, after, "MMVP-VLM", self.confidence, resamples, seed)

    def __str__(self) -> str:
        title = f"MMVP-VLM ({self.embedding})"
        width = max(map(len, [*self.patterns, title]))

        def line(name: str, right: int, total: int, accuracy: float, interval: tuple[float, float]) -> str:
            low, high = interval
            return f"{name:<{width}}  {right:>3}/{total:<3}  {accuracy:5.1f}   {low:5.1f} to {high:5.1f}"

        lines = [f"{title:<{width}}  {'right':>7}      %   {self.confidence:.0%} interval"]
        intervals = self.intervals
        for name, (right, total) in self.counts.items():
            lines.append(line(name, right, total, 100 * right / total, intervals[name]))
        lines.append(line("average", self.right, len(self.pairs), self.average, self.interval))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Scores, intervals and every pair, for JSON; in per cent, except the pairs' shares."""
        facts = ("model", "embedding", "root", "seed", "confidence")
        scores = ("average", "interval", "patterns", "intervals")
        return {
            "benchmark": "MMVP-VLM",
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
