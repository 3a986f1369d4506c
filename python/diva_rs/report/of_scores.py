"""The sections about what was kept: zero-shot, retrieval, linear probes, and how far the embeddings moved."""

from collections import Counter

from diva_rs.evaluation.scores import DriftResult, ProbeScore, SuiteResult
from diva_rs.evaluation.statistics import Comparison, compare_outcomes
from diva_rs.report.blocks import Block, Columns, Figure, Key, Missing, Section, Table, Text
from diva_rs.report.change import (
    Change,
    changes_table,
    compared,
    differences_figure,
    multiplicity,
    scores_figure,
)
from diva_rs.report.comparisons import histogram
from diva_rs.report.evidence import Side
from diva_rs.report.words import count, figure, points

_HOW = {
    "zero-shot": """from diva_rs.evaluation import report, zero_shot

before = zero_shot(clip, preprocess, tokenizer, "datasets", ["cifar10"])    # before post_train
after = zero_shot(clip, preprocess, tokenizer, "datasets", ["cifar10"])     # after it
report.write("runs/a", before=before, after=after)""",
    "retrieval": """from diva_rs.evaluation import report, retrieval

before = retrieval(clip, preprocess, tokenizer, "datasets", ["flickr30k"])    # before post_train
after = retrieval(clip, preprocess, tokenizer, "datasets", ["flickr30k"])     # after it
report.write("runs/a", before=before, after=after)""",
    "probes": """from diva_rs.evaluation import linear_probe, report

before = linear_probe(clip, train, test)    # before post_train: batches of (pixels, labels)
after = linear_probe(clip, train, test)     # after it
report.write("runs/a", before=before, after=after)""",
    "drift": """from diva_rs.evaluation import drift, report

original = diva_rs.clip.adapt(clip).frozen_copy()    # before post_train
moved = drift(original, clip, images)                # after it
report.write("runs/a", after=moved)""",
}


def suite_changes(before: Side, after: Side, task: str) -> list[Change]:
    """One change per data set of a task, in the order of the first side that has it."""
    old, new = before.suites.get(task), after.suites.get(task)
    found = {} if old is None or new is None else old.compare(new)
    names = list(dict.fromkeys(score.dataset for suite in (old, new) if suite for score in suite.scores))
    return [_suite_change(name, old, new, found.get(name)) for name in names]


def folder_change(before: Side, after: Side) -> Change | None:
    """Zero-shot on an image folder; None where it was measured on neither side."""
    old, new = before.folder, after.folder
    if old is not None and new is not None:
        return compared("Image folder", old.compare(new), old.interval, new.interval)
    if old is not None:
        return Change(
            "Image folder", old.accuracy, None, before_interval=old.interval, confidence=old.confidence
        )
    if new is not None:
        return Change(
            "Image folder", None, new.accuracy, after_interval=new.interval, confidence=new.confidence
        )
    return None


def retention_section(before: Side, after: Side) -> Section:
    """Zero-shot classification and retrieval: what post-training kept."""
    folder = folder_change(before, after)
    blocks = [
        *_task(
            suite_changes(before, after, "zero-shot") + ([folder] if folder else []),
            "zero-shot",
            before,
            after,
        ),
        *_task(suite_changes(before, after, "retrieval"), "retrieval", before, after),
    ]
    return Section("Zero-shot and retrieval: what was kept", "retention", tuple(blocks))


def probes_section(before: Side, after: Side) -> Section:
    """How much a linear classifier reads from the features."""
    title, anchor = "Linear probes", "probes"
    names = list(dict.fromkeys([*before.probes, *after.probes]))
    if not names:
        text = "How much a linear classifier reads from the features was not measured."
        return Section(title, anchor, (Missing(text, _HOW["probes"]),))
    changes = [_probe_change(name, before.probes.get(name), after.probes.get(name)) for name in names]
    rows = []
    for name in names:
        for side, score in (("before", before.probes.get(name)), ("after", after.probes.get(name))):
            if score is not None:
                images = (figure(score.images.get(part)) for part in ("train", "validation", "test"))
                rows.append((name, side, *images, f"{score.c:g}"))
    header = ("Features", "Model", "Fitted on", "Chosen on", "Tested on", "C")
    details = Table(
        "Images of each probe, and the penalty chosen", header, tuple(rows), frozenset({2, 3, 4, 5})
    )
    table = changes_table("Accuracy on the test images", "Features", changes)
    return Section(title, anchor, (table, details))


def drift_section(after: Side) -> Section:
    """How far the embeddings moved."""
    title, anchor, drift = "Drift of the embeddings", "drift", after.drift
    if drift is None:
        missing = Missing(
            "How far the embeddings moved from the original CLIP's was not measured.", _HOW["drift"]
        )
        return Section(title, anchor, (missing,))
    rows = (
        ("Images", f"{len(drift.cosines):,}"),
        ("Mean cosine to the original embedding", f"{drift.cosine:.4f}"),
        ("Lowest cosine", f"{drift.lowest:.4f}"),
        ("Linear CKA with the original", f"{drift.cka:.4f}"),
    )
    alt = (
        f"Histogram of the cosine between an image's embedding before and after, over {len(drift.cosines)} "
        f"images: mean {drift.cosine:.4f}, lowest {drift.lowest:.4f}."
    )
    chart = Figure(
        histogram(drift.cosines, "cosine to the original", "images", alt), alt, "Cosines of single images."
    )
    blocks: tuple[Block, ...] = (
        Table("Embeddings after post-training against those before", ("What", "Value"), rows),
        chart if len(drift.cosines) > 1 else Text("A single image has no histogram."),
        Text(
            "A cosine of 1 is no movement. CKA is 1 where the images still lie to each other as they did, "
            "even if the whole space was rotated or scaled; text embeddings do not turn with it, so "
            "zero-shot may suffer all the same.",
            note=True,
        ),
    )
    return Section(title, anchor, blocks)


def drift_key(drift: DriftResult) -> Key:
    """Drift for the head of the report."""
    return Key("Mean cosine to the original", f"{drift.cosine:.3f}", f"linear CKA {drift.cka:.3f}")


def _suite_change(
    name: str, old: SuiteResult | None, new: SuiteResult | None, found: Comparison | float | None
) -> Change:
    before, after = (
        {s.dataset: s for s in suite.scores}.get(name) if suite else None for suite in (old, new)
    )
    some = before or after
    assert some is not None
    label = f"{name} ({some.metric})"
    level = (old or new).confidence  # type: ignore[union-attr]
    intervals = (before.interval if before else None, after.interval if after else None)
    if isinstance(found, Comparison):
        return compared(label, found, *intervals)
    note = "different metrics" if before and after and before.metric != after.metric else ""
    values = (before.value if before else None, after.value if after else None)
    return Change(label, *values, *intervals, confidence=level, note=note)


def _probe_change(name: str, old: ProbeScore | None, new: ProbeScore | None) -> Change:
    intervals = (old.interval if old else None, new.interval if new else None)
    if old and new and old.outcomes and len(old.outcomes) == len(new.outcomes):
        return compared(name, compare_outcomes(old.outcomes, new.outcomes, name), *intervals)
    return Change(name, old.accuracy if old else None, new.accuracy if new else None, *intervals)


def _task(changes: list[Change], task: str, before: Side, after: Side) -> list[Block]:
    if not changes:
        words = "Zero-shot accuracy" if task == "zero-shot" else "Retrieval"
        return [
            Missing(
                f"{words} was measured neither before nor after, so what was kept is unknown.", _HOW[task]
            )
        ]
    both = [change for change in changes if change.difference is not None]
    blocks: list[Block] = []
    if both:
        mean = sum(change.difference or 0.0 for change in both) / len(both)
        readings = Counter(change.reading for change in both)
        listed = ", ".join(f"{number} {reading}" for reading, number in sorted(readings.items()))
        blocks.append(
            Text(f"Over {count(len(both), f'{task} data set')}: {points(mean)} points on average; {listed}.")
        )
    blocks.append(changes_table(f"{task.capitalize()} scores", "Data set", changes))
    figures = [scores_figure(both, f"{task.capitalize()} scores")] if both else []
    if tested := [change for change in both if change.interval is not None]:
        figures.append(differences_figure(tested, f"{task} scores"))
    blocks.append(Columns(tuple(figures)))
    if len(tested) > 1:
        blocks.append(multiplicity(len(tested), "data sets", tested[0].confidence))
    blocks += [
        Text(f"{name} could not be had: {reason}") for name, reason in _missing(task, before, after).items()
    ]
    return blocks


def _missing(task: str, before: Side, after: Side) -> dict[str, str]:
    suites = [side.suites[task] for side in (before, after) if task in side.suites]
    return {name: reason for suite in suites for name, reason in suite.missing.items()}
