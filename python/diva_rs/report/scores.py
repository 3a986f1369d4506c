"""The evaluations compared: MMVP-VLM, zero-shot and retrieval, linear probes, drift."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from diva_rs.evaluation.mmvp_vlm import MmvpPair, MmvpVlmResult
from diva_rs.evaluation.scores import DriftResult, SuiteResult
from diva_rs.evaluation.statistics import Comparison, compare_outcomes
from diva_rs.report.change import Change, Score
from diva_rs.report.charts import Chart, differences, dumbbells, histogram, radar
from diva_rs.report.evidence import Side
from diva_rs.report.words import count, points


def overall(before: Side, after: Side) -> list[Change]:
    """The changes at the head of the page."""
    found = [_whole("MMVP-VLM average", before.mmvp, after.mmvp)]
    found += [rows[0] for _, rows in details(before, after)]
    found.append(_whole("Retention, image folder", before.folder, after.folder))
    for task in dict.fromkeys([*before.suites, *after.suites]):
        sides = (before.suites.get(task), after.suites.get(task))
        old, new = (None if side is None else Score(side.average) for side in sides)
        found.append(Change(f"Retention, {task}", (old, new)))
    return [change for change in found if change is not None]


def details(before: Side, after: Side) -> Iterator[tuple[str, list[Change]]]:
    """(benchmark, its changes) of those of fine detail beside MMVP-VLM: by rule, and by category."""
    for name in dict.fromkeys([*before.detail, *after.detail]):
        old, new = before.detail.get(name), after.detail.get(name)
        one = old or new
        assert one is not None
        rows = []
        for rule in one.rules:
            sides = [side if side is None or rule not in side.rules else side[rule] for side in (old, new)]
            rows.append(_whole(f"{name} ({rule})", *sides))
        yield name, [*(row for row in rows if row is not None), *_categories(old, new)]


def _categories(old: Any, new: Any) -> list[Change]:
    """The changes of each category, where there are several and both sides were scored."""
    if old is None or new is None or len(old.counts) < 2:
        return []
    found = old.compare_categories(new)
    sides = (map(Score, *(side.values() for side in (r.shares, r.intervals, r.counts))) for r in (old, new))
    pairs = zip(found, zip(*sides, strict=True), strict=True)
    return [Change(name, scores, found[name], old.confidence) for name, scores in pairs]


def patterns(old: MmvpVlmResult, new: MmvpVlmResult) -> tuple[list[Change], list[Chart]]:
    """The changes of the nine patterns and, last, of their average; charts of them."""
    changes = _categories(old, new)
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
        scores = [None if one is None else Score(one.accuracy, one.interval) for one in (old, new)]
        changes.append(Change(name, (scores[0], scores[1]), found))
    return changes


def cosines(drift: DriftResult) -> Chart:
    """A histogram of how far the embedding of each image moved."""
    alt = (
        f"Histogram of the cosine between an image's embedding before and after, over {len(drift.cosines)} "
        f"images: mean {drift.cosine:.4f}, lowest {drift.lowest:.4f}."
    )
    return histogram(drift.cosines, "cosine to the original", "images", alt, "Cosines of single images.")


def _whole(label: str, old: Any, new: Any) -> Change | None:
    """The change of a result that counts items; None if there is no result."""
    if old is None and new is None:
        return None
    found = old.compare(new) if old and new else None
    return Change(label, (_score(old), _score(new)), found, (old or new).confidence)


def _score(result: Any) -> Score | None:
    """The score of a result, with its counts where it counts items; None without a result."""
    if result is None:
        return None
    counts = None if result.right is None else (result.right, result.asked)
    return Score(result.per_cent, result.interval, counts)


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
        before, after = (_score(side.get(name)) for side in sides)
        found = compared.get(name)
        paired = found if isinstance(found, Comparison) else None
        note = "" if metrics[0] == metrics[-1] else "different metrics"
        changes.append(Change(f"{name} ({metrics[0]})", (before, after), paired, some.confidence, note))
    return changes
