"""Scores of one model: on data sets, on an image folder, by a linear probe, and its drift."""

from dataclasses import dataclass, field
from typing import Any

from diva_rs.data import Accounting
from diva_rs.errors import DataError, shown
from diva_rs.evaluation.counted import Counted, counted_line, counted_table
from diva_rs.evaluation.result import Result
from diva_rs.evaluation.statistics import Comparison, compare_outcomes

_COLUMNS = ("dataset", "metric", "value", "low", "high", "items", "missing")


@dataclass(frozen=True)
class DatasetScore(Result):
    """One model on one data set, in per cent."""

    dataset: str  # its name in clip-benchmark
    metric: str  # which of `metrics` is `value`
    value: float
    interval: tuple[float, float] | None  # of Wilson; None if the metric is not a share of the items
    items: int  # how many images were scored
    metrics: dict[str, float]  # everything that was measured
    # For each image, in the data set's order, whether it was classified rightly; empty for other metrics.
    outcomes: tuple[bool, ...] = field(default=(), repr=False)
    kind = "retention"
    is_test_set = True

    @property
    def name(self) -> str:
        """The data set."""
        return self.dataset

    @property
    def right(self) -> int | None:
        """How many images are classified rightly; None for a metric that does not count images."""
        return sum(self.outcomes) if self.outcomes else None

    @property
    def asked(self) -> int:
        """How many images were scored."""
        return self.items

    @property
    def per_cent(self) -> float:
        """The value."""
        return self.value

    @property
    def decisions(self) -> list[dict[str, Any]]:
        """One row per image; none for a metric that does not count images."""
        return [{"image": place, "correct": int(right)} for place, right in enumerate(self.outcomes)]

    @property
    def line(self) -> str:
        """The score in one line, counts first."""
        return self.row()

    def row(self, width: int = 0) -> str:
        """The line, for a table whose names are so wide."""
        if self.right is None or self.interval is None:
            return f"{self.name:<{width}}  {self.items} images  {self.metric} {self.value:.1f} %"
        return counted_line(self.name, self.right, self.items, self.interval, "images", width)


@dataclass(frozen=True)
class SuiteResult(Result):
    """One model on several data sets."""

    task: str  # "zero-shot" or "retrieval"
    scores: tuple[DatasetScore, ...]  # in the order given
    missing: dict[str, str] = field(default_factory=dict)  # data sets that could not be scored -> why
    model: str = ""  # its class
    confidence: float = 0.95  # of the intervals
    kind = "retention"
    is_test_set = True
    computed = ("average",)

    @property
    def name(self) -> str:
        """The task."""
        return self.task

    @property
    def per_cent(self) -> float:
        return self.average

    @property
    def average(self) -> float:
        """Mean of the scores in per cent, without the missing data sets."""
        return sum(score.value for score in self.scores) / len(self.scores)

    def __getitem__(self, dataset: str) -> DatasetScore:
        """The score on one data set. Raises DataError if it has none, with the reason."""
        scores = {score.dataset: score for score in self.scores}
        if dataset not in scores:
            reason = self.missing.get(dataset, f"the data sets are {', '.join(scores)}")
            raise DataError(f"no score for {shown(dataset)}: {reason}")
        return scores[dataset]

    def compare(
        self, other: "SuiteResult", resamples: int = 10_000, seed: int = 0
    ) -> dict[str, Comparison | float]:
        """This model (before) against ``other`` (after), on each data set that both have.

        A paired comparison, or the difference in points if the metric has no outcome per image.
        """
        theirs = {score.dataset: score for score in other.scores}
        changes: dict[str, Comparison | float] = {}
        for old in self.scores:
            name, new = old.dataset, theirs.get(old.dataset)
            if new is not None and new.metric != old.metric:
                raise DataError(f"{name}: {old.metric} before and {new.metric} after are not one measure")
            if new is not None and old.outcomes and new.outcomes:
                rest = (name, self.confidence, resamples, seed)
                changes[name] = compare_outcomes(old.outcomes, new.outcomes, *rest)
            elif new is not None:
                changes[name] = new.value - old.value
        return changes

    def __str__(self) -> str:
        names = [score.dataset for score in self.scores]
        width = max(map(len, [*names, *self.missing, self.task, "average"]))
        lines = [f"{self.task:<{width}}  count, {self.confidence:.0%} interval in per cent, per cent"]
        lines += [score.row(width) for score in self.scores]
        if len(names) > 1:
            lines.append(f"{'average':<{width}}  {self.average:.1f} % over {len(names)} data sets")
        lines += [f"{name:<{width}}  missing: {reason}" for name, reason in self.missing.items()]
        return "\n".join(lines)

    def records(self) -> list[dict[str, Any]]:
        """One row per data set; missing ones hold their reason."""
        rows = [
            (score.dataset, score.metric, score.value, *(score.interval or ("", "")), score.items, "")
            for score in self.scores
        ]
        gone = [(name, "", "", "", "", "", reason) for name, reason in self.missing.items()]
        return [dict(zip(_COLUMNS, row, strict=True)) for row in (*rows, *gone)]


@dataclass(frozen=True)
class FolderResult(Counted):
    """One model on an image folder with one sub-folder per class, in per cent."""

    # (file below root, class, picked class)
    predictions: tuple[tuple[str, str, str], ...] = field(repr=False)
    model: str = ""  # its class
    root: str = ""
    confidence: float = 0.95
    name: str = "zero-shot"
    is_test_set: bool = False
    accounting: Accounting = field(default_factory=Accounting)  # what the folder holds besides
    kind = "retention"
    unit = "images"
    computed = ("right", "asked", "interval", "accuracy", "per_class", "counts")

    @property
    def answers(self) -> tuple[tuple[Any, str, bool], ...]:
        return tuple((file, named, named == picked) for file, named, picked in self.predictions)

    @property
    def accuracy(self) -> float:
        """The share of images whose class was picked, in per cent."""
        return self.per_cent

    @property
    def per_class(self) -> dict[str, float]:
        """Class name -> accuracy in per cent."""
        return self.shares

    def __str__(self) -> str:
        rows = [*self.counts.items(), ("all", (self.right, self.asked))]
        table = counted_table(rows, self.unit, self.confidence, self.name)
        return f"{table}\n{self.accounting}" if self.accounting.left_out else table

    def records(self) -> list[dict[str, Any]]:
        """One row per image."""
        columns = ("file", "class", "picked", "correct")
        return [dict(zip(columns, (*row, int(row[1] == row[2])), strict=True)) for row in self.predictions]


@dataclass(frozen=True)
class ProbeScore(Result):
    """A linear probe on one kind of features, in per cent."""

    features: str  # "pooled", "class" or "patches"
    accuracy: float  # on the test images
    interval: tuple[float, float]  # of Wilson
    c: float  # inverse strength of the L2 penalty, chosen on the validation split
    validation: float  # accuracy there with this `c`
    images: dict[str, int]  # how many each split has: train, validation, test
    outcomes: tuple[bool, ...] = field(default=(), repr=False)  # for each test image: classified rightly?


@dataclass(frozen=True)
class DriftResult(Result):
    """How far a model's embeddings have moved from the original's, on the same images."""

    cosine: float  # mean over images of the cosine between the two embeddings, in [-1, 1]; 1 is no drift
    lowest: float  # the smallest of them
    # Linear centred kernel alignment of the two sets, in [0, 1]: whether the images lie to each other as
    # before, up to a rotation and a scale of the space.
    cka: float
    cosines: tuple[float, ...] = field(repr=False)  # one per image
    name = "drift"
    kind = "drift"
    is_test_set = False

    def __str__(self) -> str:
        found = f"mean cosine {self.cosine:.4f}, lowest {self.lowest:.4f}, linear CKA {self.cka:.4f}"
        return f"drift over {len(self.cosines)} images: {found}"
