"""The evaluations compared: MMVP-VLM, zero-shot and retrieval, linear probes, drift."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from diva_rs.evaluation.mmvp_result import MmvpPair, MmvpVlmResult
from diva_rs.evaluation.scores import DriftResult, FolderResult, ProbeScore, SuiteResult
from diva_rs.evaluation.statistics import Comparison, compare_outcomes
from diva_rs.report.change import Change, changed
from diva_rs.report.charts import Chart, differences, dumbbells, histogram, radar
from diva_rs.report.evidence import Side
from diva_rs.report.images import thumbnail
from diva_rs.report.words import count, points

_MOST = 24  # pairs shown each way, so that the file stays small enough to send


@dataclass(frozen=True)
class Task:
    """Scores of one task before and after, one change per row.

    ``tested`` are the changes whose difference has an interval, ``missing`` the data sets without scores.
    """

    name: str
    changes: list[Change]
    charts: list[Chart]
    missing: dict[str, str]

    @property
    def both(self) -> list[Change]:
        return [change for change in self.changes if change.difference is not None]

    @property
    def tested(self) -> list[Change]:
        return [change for change in self.both if change.interval is not None]

    @property
    def summary(self) -> str:
        """Mean difference, and how many data sets have which reading."""
        mean = sum(change.difference or 0.0 for change in self.both) / len(self.both)
        readings = Counter(change.reading for change in self.both)
        listed = ", ".join(f"{number} {reading}" for reading, number in sorted(readings.items()))
        sets = count(len(self.both), f"{self.name} data set")
        return f"Over {sets}: {points(mean)} points on average; {listed}."


@dataclass(frozen=True)
class Flip:
    """A pair of images that flipped: its pictures as (statement, file, data URI), and the decisions."""

    heading: str
    pictures: list[tuple[str, str, str | None]]
    lines: list[str]


def overall(before: Side, after: Side) -> list[Change]:
    """The changes at the head of the page."""
    changes = (_mmvp("MMVP-VLM average", before.mmvp, after.mmvp), _folder(before.folder, after.folder))
    return [change for change in changes if change is not None]


def patterns(old: MmvpVlmResult, new: MmvpVlmResult) -> tuple[list[Change], list[Chart]]:
    """The changes of the nine patterns and, last, of their average; charts of them."""
    changes = []
    for name in old.patterns:
        right = [[pair.correct for pair in side.pairs if pair.pattern == name] for side in (old, new)]
        scores = [(side.patterns[name], side.intervals[name]) for side in (old, new)]
        changes.append(changed(name, scores, compare_outcomes(right[0], right[1], name, old.confidence)))
    average = _mmvp("Average", old, new)
    assert average is not None
    every, what = [*changes, average], "MMVP-VLM accuracy"
    return every, [dumbbells(every, what), radar(changes), differences(every, what)]


def flips(old: MmvpVlmResult, new: MmvpVlmResult) -> Iterator[tuple[str, int, list[Flip]]]:
    """(what became of them, how many, the first ones) of the pairs that became right, and wrong."""
    pairs = list(zip(old.pairs, new.pairs, strict=True))
    for words, right in (("became right", True), ("became wrong", False)):
        flipped = [pair for pair in pairs if pair[0].correct != right and pair[1].correct == right]
        yield words, len(flipped), [_flip(*pair, new.root) for pair in flipped[:_MOST]]


def tasks(before: Side, after: Side) -> Iterator[Task]:
    """Zero-shot classification, retrieval, and every other task that was measured."""
    for name in dict.fromkeys(["zero-shot", "retrieval", *before.suites, *after.suites]):
        old, new = before.suites.get(name), after.suites.get(name)
        changes = _suite(old, new)
        folder = _folder(before.folder, after.folder)
        if name == "zero-shot" and folder is not None:
            changes.append(folder)
        missing = {**(old.missing if old else {}), **(new.missing if new else {})}
        task = Task(name, changes, [], missing)
        if task.both:
            task.charts.append(dumbbells(task.both, f"{name.capitalize()} scores"))
        if task.tested:
            task.charts.append(differences(task.tested, f"{name} scores"))
        yield task


def probes(before: Side, after: Side) -> list[Change]:
    """The accuracies of the linear probes."""
    changes = []
    for name in dict.fromkeys([*before.probes, *after.probes]):
        old, new = before.probes.get(name), after.probes.get(name)
        found = None
        if old and new and old.outcomes and len(old.outcomes) == len(new.outcomes):
            found = compare_outcomes(old.outcomes, new.outcomes, name)
        changes.append(changed(name, (_accuracy(old), _accuracy(new)), found))
    return changes


def cosines(drift: DriftResult) -> Chart:
    """A histogram of how far the embedding of each image moved."""
    alt = (
        f"Histogram of the cosine between an image's embedding before and after, over {len(drift.cosines)} "
        f"images: mean {drift.cosine:.4f}, lowest {drift.lowest:.4f}."
    )
    return histogram(drift.cosines, "cosine to the original", "images", alt, "Cosines of single images.")


def _mmvp(label: str, old: MmvpVlmResult | None, new: MmvpVlmResult | None) -> Change | None:
    some = old or new
    if some is None:
        return None
    sides = [(side.average, side.interval) if side else None for side in (old, new)]
    return changed(label, sides, old.compare(new) if old and new else None, some.confidence)


def _folder(old: FolderResult | None, new: FolderResult | None) -> Change | None:
    some = old or new
    if some is None:
        return None
    found = old.compare(new) if old and new else None
    return changed("Image folder", (_accuracy(old), _accuracy(new)), found, some.confidence)


def _accuracy(result: FolderResult | ProbeScore | None) -> tuple[float, tuple[float, float]] | None:
    return None if result is None else (result.accuracy, result.interval)


def _suite(old: SuiteResult | None, new: SuiteResult | None) -> list[Change]:
    """One change per data set, in the order of the first side that has it."""
    found = old.compare(new) if old and new else {}
    sides = [{score.dataset: score for score in suite.scores} if suite else {} for suite in (old, new)]
    changes = []
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        scores = [side[name] for side in sides if name in side]
        values = [(side[name].value, side[name].interval) if name in side else None for side in sides]
        comparison = found.get(name)
        changes.append(
            changed(
                f"{name} ({scores[0].metric})",
                values,
                comparison if isinstance(comparison, Comparison) else None,
                next(suite.confidence for suite in (old, new) if suite),
                "" if scores[0].metric == scores[-1].metric else "different metrics",
            )
        )
    return changes


def _flip(old: MmvpPair, new: MmvpPair, root: str) -> Flip:
    pictures = []
    for path, statement in zip(new.images, new.statements, strict=True):
        name = "/".join(path.replace("\\", "/").split("/")[-2:])  # with its folder, which is the pattern
        pictures.append((statement, name, thumbnail(path, root)))
    lines = [f"Statement {n + 1}: {_decision(old, n)} before, {_decision(new, n)} after." for n in (0, 1)]
    return Flip(f"{new.pattern}, questions {new.ids[0]} and {new.ids[1]}", pictures, lines)


def _decision(pair: MmvpPair, n: int) -> str:
    share = pair.scores[n] if pair.expected[n] == 1 else 1 - pair.scores[n]
    return f"{'right' if pair.picked[n] == pair.expected[n] else 'wrong'} ({100 * share:.1f} %)"
