"""The evaluations compared: MMVP-VLM, zero-shot and retrieval, linear probes, drift."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from diva_rs.evaluation.mmvp_result import MmvpPair, MmvpVlmResult
from diva_rs.evaluation.scores import DriftResult, FolderResult, ProbeScore, SuiteResult
from diva_rs.evaluation.statistics import Comparison, compare_outcomes
from diva_rs.report.change import Change, Score
from diva_rs.report.charts import Chart, differences, dumbbells, histogram, radar
from diva_rs.report.evidence import Side
from diva_rs.report.words import count, points


def overall(before: Side, after: Side) -> list[Change]:
    """The changes at the head of the page."""
    mmvp = _whole("MMVP-VLM average", before.mmvp, after.mmvp)
    folder = _whole("Image folder", before.folder, after.folder)
    return [change for change in (mmvp, folder) if change is not None]


def patterns(old: MmvpVlmResult, new: MmvpVlmResult) -> tuple[list[Change], list[Chart]]:
    """The changes of the nine patterns and, last, of their average; charts of them."""
    changes = []
    for name in old.patterns:
        before, after = ([p.correct for p in side.pairs if p.pattern == name] for side in (old, new))
        found = compare_outcomes(before, after, name, old.confidence)
        scores = [(side.patterns[name], side.intervals[name]) for side in (old, new)]
        changes.append(Change(name, (scores[0], scores[1]), found, old.confidence))
    average = _whole("Average", old, new)
    assert average is not None
    every, what = [*changes, average], "MMVP-VLM accuracy"
    return every, [dumbbells(every, what), radar(changes), differences(every, what)]


def flips(old: MmvpVlmResult, new: MmvpVlmResult) -> dict[str, list[tuple[MmvpPair, MmvpPair]]]:
    """(before, after) of the pairs that became right, and of those that became wrong."""
    both = [pair for pair in zip(old.pairs, new.pairs, strict=True) if pair[0].correct != pair[1].correct]
    return {
        "became right": [pair for pair in both if pair[1].correct],
        "became wrong": [pair for pair in both if pair[0].correct],
    }


def tasks(before: Side, after: Side) -> Iterator[tuple[str, list[Change], dict[str, str]]]:
    """(task, changes of its data sets, why others are missing): zero-shot, retrieval, and others measured."""
    for name in dict.fromkeys(["zero-shot", "retrieval", *before.suites, *after.suites]):
        old, new = before.suites.get(name), after.suites.get(name)
        changes = _suite(old, new)
        folder = _whole("Image folder", before.folder, after.folder)
        if name == "zero-shot" and folder is not None:
            changes.append(folder)
        yield name, changes, {**(old.missing if old else {}), **(new.missing if new else {})}


def summary(task: str, changes: list[Change]) -> str:
    """Mean difference, and how many data sets have which reading."""
    mean = sum(change.difference or 0.0 for change in changes) / len(changes)
    readings = Counter(change.reading for change in changes)
    listed = ", ".join(f"{number} {reading}" for reading, number in sorted(readings.items()))
    return f"Over {count(len(changes), f'{task} data set')}: {points(mean)} points on average; {listed}."


def charts(task: str, both: list[Change], tested: list[Change]) -> list[Chart]:
    """Charts of the scores, and of the differences that have an interval."""
    found = [dumbbells(both, f"{task.capitalize()} scores")] if both else []
    return [*found, differences(tested, f"{task} scores")] if tested else found


def probes(before: Side, after: Side) -> list[Change]:
    """The accuracies of the linear probes."""
    changes = []
    for name in dict.fromkeys([*before.probes, *after.probes]):
        old, new = before.probes.get(name), after.probes.get(name)
        found = None
        if old and new and old.outcomes and len(old.outcomes) == len(new.outcomes):
            found = compare_outcomes(old.outcomes, new.outcomes, name)
        changes.append(Change(name, (_score(old), _score(new)), found))
    return changes


def cosines(drift: DriftResult) -> Chart:
    """A histogram of how far the embedding of each image moved."""
    alt = (
        f"Histogram of the cosine between an image's embedding before and after, over {len(drift.cosines)} "
        f"images: mean {drift.cosine:.4f}, lowest {drift.lowest:.4f}."
    )
    return histogram(drift.cosines, "cosine to the original", "images", alt, "Cosines of single images.")


def _whole(label: str, old: Any, new: Any) -> Change | None:
    """The change of a result that has one score: MMVP-VLM or an image folder; None if there is no result."""
    if old is None and new is None:
        return None
    found = old.compare(new) if old and new else None
    return Change(label, (_score(old), _score(new)), found, (old or new).confidence)


def _score(result: MmvpVlmResult | FolderResult | ProbeScore | None) -> Score | None:
    if result is None:
        return None
    return (result.average if isinstance(result, MmvpVlmResult) else result.accuracy, result.interval)


def _suite(old: SuiteResult | None, new: SuiteResult | None) -> list[Change]:
    """One change per data set, in the order of the first side that has it."""
    some = old or new
    if some is None:
        return []
    compared = old.compare(new) if old and new else {}
    sides = [{score.dataset: score for score in suite.scores} if suite else {} for suite in (old, new)]
    changes = []
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        metrics = [side[name].metric for side in sides if name in side]
        before, after = ((side[name].value, side[name].interval) if name in side else None for side in sides)
        found = compared.get(name)
        paired = found if isinstance(found, Comparison) else None
        note = "" if metrics[0] == metrics[-1] else "different metrics"
        changes.append(Change(f"{name} ({metrics[0]})", (before, after), paired, some.confidence, note))
    return changes
