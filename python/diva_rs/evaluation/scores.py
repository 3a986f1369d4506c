"""What the benchmarks over whole data sets give back: one score per data set, and what could not be had."""

import csv
import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diva_rs._base.arguments import as_path, of_type
from diva_rs._base.checkpoint import write_json, write_text
from diva_rs.errors import DataError, shown
from diva_rs.evaluation.statistics import Comparison, compare_outcomes


@dataclass(frozen=True)
class DatasetScore:
    """One model on one data set.

    Attributes:
        dataset: its name in clip-benchmark, or the folder.
        metric: which of `metrics` is `value`.
        value: the score in per cent.
        interval: Wilson interval of `value` in per cent; None where the metric is no share of the items.
        items: how many images were scored.
        metrics: everything that was measured, in per cent.
        outcomes: for each image whether it was classified rightly, in data set order; empty where the metric
            has no such thing.
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
        return {**vars(self), "outcomes": "".join("01"[right] for right in self.outcomes)}


@dataclass(frozen=True)
class SuiteResult:
    """One model on several data sets.

    Attributes:
        task: "zero-shot" or "retrieval".
        scores: one per data set that was scored, in the order asked for.
        missing: data sets that could not be had -> the reason.
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
        """Mean of the scores in per cent, over the data sets that are there."""
        return sum(score.value for score in self.scores) / len(self.scores)

    def __getitem__(self, dataset: str) -> DatasetScore:
        """The score on one data set. Raises DataError where there is none, with the reason if it is known."""
        for score in self.scores:
            if score.dataset == dataset:
                return score
        known = ", ".join(score.dataset for score in self.scores)
        raise DataError(f"no score for {shown(dataset)}: {self.missing.get(dataset, f'there are {known}')}")

    def compare(
        self, other: "SuiteResult", resamples: int = 10_000, seed: int = 0
    ) -> dict[str, Comparison | float]:
        """This model (before) against ``other`` (after): data set -> a paired comparison, or the difference
        in points where the metric has no outcome per image.

        Data sets that only one of the two has are left out.
        """
        of_type("other", other, SuiteResult, "the result for the other model")
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

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write `to_dict` atomically; returns the path. Raises DataError where it cannot be written."""
        place = as_path(path)
        write_json(place, self.to_dict())
        return place

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write one row per data set atomically, missing ones with their reason; returns the path.

        Raises:
            DataError: it cannot be written.
        """
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["dataset", "metric", "value", "low", "high", "items", "missing"])
        for score in self.scores:
            low, high = score.interval or ("", "")
            rows.writerow([score.dataset, score.metric, score.value, low, high, score.items, ""])
        for name, reason in self.missing.items():
            rows.writerow([name, "", "", "", "", "", reason])
        place = as_path(path)
        write_text(place, text.getvalue())
        return place


@dataclass(frozen=True)
class FolderResult:
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
        of_type("other", other, FolderResult, "the result for the other model")
        mine, theirs = [row[:2] for row in self.predictions], [row[:2] for row in other.predictions]
        if mine != theirs:
            raise DataError(f"the results are of different images, from {self.root} and {other.root}")
        before, after = ([named == picked for _, named, picked in r.predictions] for r in (self, other))
        return compare_outcomes(before, after, "zero-shot", self.confidence, resamples, seed)

    def __str__(self) -> str:
        width = max(map(len, [*self.counts, "zero-shot"]))
        right, total = map(sum, zip(*self.counts.values(), strict=True))
        low, high = self.interval
        return "\n".join(
            [
                f"{'zero-shot':<{width}}     right      %",
                *(
                    f"{name:<{width}}  {hits:>4}/{of:<4} {self.per_class[name]:5.1f}"
                    for name, (hits, of) in self.counts.items()
                ),
                f"{'all':<{width}}  {right:>4}/{total:<4} {self.accuracy:5.1f}   "
                f"{self.confidence:.0%} interval {low:.1f} to {high:.1f}",
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return dict(vars(self))

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write `to_dict` atomically; returns the path. Raises DataError where it cannot be written."""
        place = as_path(path)
        write_json(place, self.to_dict())
        return place

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write one row per image atomically; returns the path. Raises DataError where that fails."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["file", "class", "picked", "correct"])
        rows.writerows(
            [file, named, picked, int(named == picked)] for file, named, picked in self.predictions
        )
        place = as_path(path)
        write_text(place, text.getvalue())
        return place


@dataclass(frozen=True)
class ProbeScore:
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
        return {**vars(self), "outcomes": "".join("01"[right] for right in self.outcomes)}


@dataclass(frozen=True)
class DriftResult:
    """How far a model's embeddings have moved from the original's, on the same images.

    Attributes:
        cosine: mean over images of the cosine between the two embeddings, in [-1, 1]; 1 is no drift.
        lowest: the smallest of them.
        cka: linear centred kernel alignment of the two sets, in [0, 1]: whether the images still lie to each
            other as they did, whatever rotation or scale there is between the two spaces.
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

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return dict(vars(self))
