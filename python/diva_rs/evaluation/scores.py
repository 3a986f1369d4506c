"""Scores of one model: on data sets, on an image folder, by a linear probe, and its drift."""

from dataclasses import dataclass, field
from typing import Any

from diva_rs.errors import DataError, shown
from diva_rs.evaluation.result import Result, bits
from diva_rs.evaluation.statistics import Comparison, compare_outcomes


@dataclass(frozen=True)
class DatasetScore(Result):
    """One model on one data set.

    Attributes:
        dataset: its name in clip-benchmark, or the folder.
        metric: which of `metrics` is `value`.
        value: the score in per cent.
        interval: Wilson interval of `value` in per cent; None if the metric is not a share of the items.
        items: how many images were scored.
        metrics: everything that was measured, in per cent.
        outcomes: for each image whether it was classified rightly, in the data set's order; empty if the
            metric has no outcome per image.
    """

    dataset: str
    metric: str
    value: float
    interval: tuple[float, float] | None
    items: int
    metrics: dict[str, float]
    outcomes: tuple[bool, ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON; the outcomes as one string of 0 and 1."""
        return {**vars(self), "outcomes": bits(self.outcomes)}


@dataclass(frozen=True)
class SuiteResult(Result):
    """One model on several data sets.

    Attributes:
        task: "zero-shot" or "retrieval".
        scores: one per data set that was scored, in the order given.
        missing: data sets that could not be scored -> the reason.
        model: the class of the model, for tables.
        confidence: of the intervals.
    """

    task: str
    scores: tuple[DatasetScore, ...]
    missing: dict[str, str] = field(default_factory=dict)
    model: str = ""
    confidence: float = 0.95

    @property
    def average(self) -> float:
        """Mean of the scores in per cent, without the missing data sets."""
        return sum(score.value for score in self.scores) / len(self.scores)

    def __getitem__(self, dataset: str) -> DatasetScore:
        """The score on one data set. Raises DataError if it has none, with the reason."""
        for score in self.scores:
            if score.dataset == dataset:
                return score
        known = ", ".join(score.dataset for score in self.scores)
        reason = self.missing.get(dataset, f"the data sets are {known}")
        raise DataError(f"no score for {shown(dataset)}: {reason}")

    def compare(
        self, other: "SuiteResult", resamples: int = 10_000, seed: int = 0
    ) -> dict[str, Comparison | float]:
        """This model (before) against ``other`` (after): data set -> a paired comparison, or the difference
        in points if the metric has no outcome per image. Only data sets that both have are compared.
        """
        theirs = {score.dataset: score for score in other.scores}
        changes: dict[str, Comparison | float] = {}
        for mine in self.scores:
            if mine.dataset not in theirs:
                continue
            after = theirs[mine.dataset]
            if mine.outcomes and after.outcomes:
                changes[mine.dataset] = compare_outcomes(
                    mine.outcomes, after.outcomes, mine.dataset, self.confidence, resamples, seed
                )
            else:
                changes[mine.dataset] = after.value - mine.value
        return changes

    def __str__(self) -> str:
        names = [score.dataset for score in self.scores] + list(self.missing) + [self.task, "average"]
        width = max(map(len, names))
        lines = [f"{self.task:<{width}}   images      %   {self.confidence:.0%} interval   metric"]
        for score in self.scores:
            low_high = "" if score.interval is None else "{:5.1f} to {:5.1f}".format(*score.interval)
            lines.append(
                f"{score.dataset:<{width}}  {score.items:>7}  {score.value:5.1f}   {low_high:<14}"
                f"   {score.metric}"
            )
        if len(self.scores) > 1:
            lines.append(f"{'average':<{width}}  {'':>7}  {self.average:5.1f}   of {len(self.scores)}")
        lines += [f"{name:<{width}}  missing: {reason}" for name, reason in self.missing.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "task": self.task,
            "model": self.model,
            "confidence": self.confidence,
            "average": self.average,
            "scores": [score.to_dict() for score in self.scores],
            "missing": self.missing,
        }

    def records(self) -> list[dict[str, Any]]:
        """One row per data set; missing ones hold their reason."""
        names = ("dataset", "metric", "value", "low", "high", "items", "missing")
        rows: list[tuple[Any, ...]] = []
        for score in self.scores:
            low, high = score.interval or ("", "")
            rows.append((score.dataset, score.metric, score.value, low, high, score.items, ""))
        rows += [(name, "", "", "", "", "", reason) for name, reason in self.missing.items()]
        return [dict(zip(names, row, strict=True)) for row in rows]


@dataclass(frozen=True)
class FolderResult(Result):
    """One model on an image folder with one sub-folder per class.

    Attributes:
        accuracy: share of images whose class was picked, in per cent.
        interval: its Wilson interval in per cent.
        per_class: class name -> accuracy in per cent.
        counts: class name -> (right, images).
        predictions: (file relative to the root, class, picked class), in the order of the files.
        model, root, confidence: what was scored, and the intervals' confidence.
    """

    accuracy: float
    interval: tuple[float, float]
    per_class: dict[str, float]
    counts: dict[str, tuple[int, int]]
    predictions: tuple[tuple[str, str, str], ...] = field(repr=False)
    model: str = ""
    root: str = ""
    confidence: float = 0.95

    def compare(self, other: "FolderResult", resamples: int = 10_000, seed: int = 0) -> Comparison:
        """This model (before) against ``other`` (after) on the same images.

        Raises:
            DataError: the two were not scored on the same files and classes.
        """
        mine, theirs = [row[:2] for row in self.predictions], [row[:2] for row in other.predictions]
        if mine != theirs:
            raise DataError(f"the results are of different images, from {self.root} and {other.root}")
        before, after = ([named == picked for _, named, picked in r.predictions] for r in (self, other))
        return compare_outcomes(before, after, "zero-shot", self.confidence, resamples, seed)

    def __str__(self) -> str:
        width = max(map(len, [*self.counts, "zero-shot"]))
        right, total = map(sum, zip(*self.counts.values(), strict=True))
        low, high = self.interval
        rows = [
            f"{name:<{width}}  {hits:>4}/{of:<4} {self.per_class[name]:5.1f}"
            for name, (hits, of) in self.counts.items()
        ]
        last = f"{'all':<{width}}  {right:>4}/{total:<4} {self.accuracy:5.1f}   "
        last += f"{self.confidence:.0%} interval {low:.1f} to {high:.1f}"
        return "\n".join([f"{'zero-shot':<{width}}     right      %", *rows, last])

    def records(self) -> list[dict[str, Any]]:
        """One row per image."""
        return [
            {"file": file, "class": named, "picked": picked, "correct": int(named == picked)}
            for file, named, picked in self.predictions
        ]


@dataclass(frozen=True)
class ProbeScore(Result):
    """A linear probe on one kind of features.

    Attributes:
        features: "pooled", "class" or "patches".
        accuracy: on the test images, in per cent.
        interval: its Wilson interval in per cent.
        c: inverse strength of the L2 penalty, chosen on the validation split.
        validation: accuracy there with this `c`, in per cent.
        images: how many images each split has: train, validation, test.
        outcomes: for each test image whether it was classified rightly.
    """

    features: str
    accuracy: float
    interval: tuple[float, float]
    c: float
    validation: float
    images: dict[str, int]
    outcomes: tuple[bool, ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON; the outcomes as one string of 0 and 1."""
        return {**vars(self), "outcomes": bits(self.outcomes)}


@dataclass(frozen=True)
class DriftResult(Result):
    """How far a model's embeddings have moved from the original's, on the same images.

    Attributes:
        cosine: mean over images of the cosine between the two embeddings, in [-1, 1]; 1 is no drift.
        lowest: the smallest of them.
        cka: linear centred kernel alignment of the two sets, in [0, 1]: whether the images lie to each other
            as before, up to a rotation and a scale of the space.
        cosines: one per image.
    """

    cosine: float
    lowest: float
    cka: float
    cosines: tuple[float, ...] = field(repr=False)

    def __str__(self) -> str:
        return (
            f"drift over {len(self.cosines)} images: mean cosine {self.cosine:.4f}, lowest "
            f"{self.lowest:.4f}, linear CKA {self.cka:.4f}"
        )
