"""What the demo measures of a CLIP, and the table of two such measurements."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from tqdm.auto import tqdm

from diva_rs.evaluation import linear_probe
from diva_rs.evaluation.mmvp_vlm import MmvpVlmResult
from diva_rs.evaluation.scores import DatasetScore, ProbeScore, SuiteResult
from diva_rs.evaluation.statistics import change, compare_outcomes
from diva_rs.microworld import PATTERNS, VALUES, World, image_embeddings, mini_mmvp, zero_shot_objects
from diva_rs.microworld.models import MEAN, STD
from diva_rs.microworld.scores import ZeroShotScore

_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
# Scenes that neither the study's settings were chosen on nor its results are measured on.
_START = 1 << 19


@dataclass(frozen=True)
class Scores:
    """A CLIP's scores on the same scenes, and the embeddings of the images of zero-shot."""

    mmvp: MmvpVlmResult  # on pairs that differ in one attribute
    zero_shot: ZeroShotScore
    probes: dict[str, ProbeScore]  # attribute -> a linear probe on the class token
    embeddings: Tensor  # (N, D)

    def results(self) -> list[Any]:
        """As `diva_rs.report.write` takes them."""
        outcomes, accuracy, interval = (
            self.zero_shot.outcomes,
            self.zero_shot.accuracy,
            self.zero_shot.interval,
        )
        metrics = {"acc1": accuracy}
        objects = DatasetScore(
            "microworld objects", "acc1", accuracy, interval, len(outcomes), metrics, outcomes
        )
        named = {
            name: dataclasses.replace(score, features=f"class token: {name}")
            for name, score in self.probes.items()
        }
        return [self.mmvp, SuiteResult("zero-shot", (objects,), model=self.mmvp.model), named]


class Scoring:
    """Scores any CLIP on the same scenes: ``per_pattern`` pairs of each of the nine patterns, and ``images``
    scenes for zero-shot and the probes, which are fitted on as many others.
    """

    def __init__(self, per_pattern: int, images: int) -> None:
        self.per_pattern = per_pattern
        self.pairs = World("validation", len(PATTERNS) * per_pattern, start=_START)
        self.scenes = World("validation", images, start=_START + len(self.pairs))
        self._scored = _rows(self.scenes)
        self._fitted = _rows(World("train", images, start=(1 << 24) - images))

    def __call__(self, clip: nn.Module, progress: bool = False) -> Scores:
        """The scores of ``clip``; ``progress`` shows a bar over the probes, which take longest."""
        probes = {}
        for column, name in enumerate(tqdm(VALUES, "probes", disable=not progress)):
            if name not in PATTERNS.values():
                continue
            sides = (self._fitted, self._scored)
            fitted, scored = ([(images, labels[:, column])] for images, labels in sides)
            probes[name] = linear_probe(clip, fitted, scored, ["class"], cs=_PENALTIES)["class"]
        return Scores(
            mini_mmvp(clip, self.pairs, self.per_pattern),
            zero_shot_objects(clip, self.scenes),
            probes,
            image_embeddings(clip, self.scenes.images, range(len(self.scenes))),
        )


@dataclass(frozen=True)
class Row:
    """A line of the table: two scores in per cent, their difference in points and its 95 % interval."""

    name: str
    before: float
    after: float
    difference: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.interval
        mark = "*" if low > 0 or high < 0 else " "
        return (
            f"{self.name:<38}{self.before:>7.1f}{self.after:>8.1f}{self.difference:>+9.1f}"
            f"{low:>+9.1f} to {high:+5.1f} {mark}"
        ).rstrip()


def rows(before: Scores, after: Scores) -> Iterator[Row]:
    """Mini-MMVP and its patterns, zero-shot, and the probes' mean and each of them."""
    for name in ("", *PATTERNS):
        old, new = (
            [pair.correct for pair in scores.mmvp.pairs if name in ("", pair.pattern)]
            for scores in (before, after)
        )
        yield _row(f"  {name}" if name else "mini-MMVP", old, new)
    yield _row("zero-shot objects", before.zero_shot.outcomes, after.zero_shot.outcomes)
    # The nine answers about an image are not independent: the interval of the mean is over images.
    sides = ([probe.outcomes for probe in scores.probes.values()] for scores in (before, after))
    mean = change(*(100 * np.mean(side, axis=0) for side in sides))
    yield Row("probes of the class token", mean.before, mean.after, mean.difference, (mean.low, mean.high))
    for name in before.probes:
        yield _row(f"  {name}", before.probes[name].outcomes, after.probes[name].outcomes)


def table(before: Scores, after: Scores) -> str:
    """The whole table, with a line on how to read it."""
    lines = [str(row) for row in rows(before, after)]
    head = f"{'per cent right':<38}{'before':>7}{'after':>8}{'change':>9}   95 % interval"
    note = (
        f"* the interval excludes 0. Paired, over the same {len(before.mmvp.pairs):,} pairs and "
        f"{len(before.zero_shot.outcomes):,} images;\n  it does not cover other seeds, and one row in twenty "
        "is marked by chance."
    )
    return "\n".join([head, "-" * len(head), *lines, note])


def _row(name: str, before: Sequence[bool], after: Sequence[bool]) -> Row:
    found = compare_outcomes(before, after, name)
    return Row(name, found.before, found.after, found.difference, found.interval)


def _rows(world: World) -> tuple[Tensor, Tensor]:
    """CLIP's pixels (N, 3, 48, 48) and the labels (N, attributes)."""
    numbers = range(len(world))
    return (world.images(numbers) - MEAN) / STD, world.labels(numbers)
