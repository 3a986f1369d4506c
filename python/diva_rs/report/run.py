"""The record of a run, from a `PostTrainResult` or from the files of a run folder."""

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diva_rs._base.files import as_path, read_json, read_text
from diva_rs.errors import ConfigError, DataError
from diva_rs.recipes.recipe import Recipe
from diva_rs.run.result import PostTrainResult

# What a log holds beside losses and scores.
_OTHERS = frozenset(
    ("step", "stage", "epoch", "samples", "skipped", "samples_per_second", "waiting", "lr", "grad_norm")
)


@dataclass(frozen=True)
class Run:
    """A run's record."""

    name: str  # of the folder, or the recipe's
    recipe: Recipe
    history: tuple[dict[str, float], ...]  # one dict per log, with "step"; NaN for what is not finite
    report: Mapping[str, Any]  # what was trained on what; empty while the run has not ended
    notes: tuple[str, ...] = ()  # what could not be read, in words
    origin: Mapping[str, Any] = field(default_factory=dict)  # run.json: fingerprints, and the run's starts
    # "before" and "after" -> the results of diva_rs.evaluation that were measured, as dicts
    results: Mapping[str, list[Any]] = field(default_factory=dict)

    def column(self, name: str) -> tuple[list[float], list[float]]:
        """(steps, values) of a logged number, NaN if a log has none."""
        return [log["step"] for log in self.history], [log.get(name, math.nan) for log in self.history]

    def finite(self, name: str) -> list[float]:
        """The finite values of a logged number."""
        return [value for value in self.column(name)[1] if math.isfinite(value)]

    @property
    def state(self) -> str:
        """How the run ended, unless it did all its steps."""
        if self.report.get("interrupted"):
            return "interrupted by Ctrl-C"
        if self.report.get("stopped"):
            return "stopped by the guard"
        return "" if self.report else "no end recorded"

    @property
    def teacher(self) -> list[tuple[str, str]]:
        """(part, what it is) of the lines of `Teacher.describe`."""
        parts = [line.partition(": ") for line in str(self.report.get("teacher", "")).splitlines()]
        return [(name, value) if colon else ("", name) for name, colon, value in parts]

    @property
    def resumed(self) -> list[int]:
        """The steps at which an interrupted run was resumed."""
        starts = self.origin.get("starts")
        later = starts[1:] if isinstance(starts, list) else []
        return [start["step"] for start in later if isinstance(start, Mapping) and "step" in start]

    @property
    def evaluation(self) -> dict[str, Mapping[str, Any]]:
        """Moment ("before", "best", "after") -> step and scores, if the run was given ``evaluate``."""
        found = self.report.get("evaluation")
        rows = found if isinstance(found, Mapping) else {}
        moments = ("before", "best", "after")
        return {name: rows[name] for name in moments if isinstance(rows.get(name), Mapping)}

    @property
    def chosen_on_test(self) -> str:
        """The test sets by which the weights in best/ were chosen; empty for none."""
        found = self.report.get("evaluation")
        return str(found.get("chosen_on_test") or "") if isinstance(found, Mapping) else ""

    @property
    def scores(self) -> list[str]:
        """The names of the scores measured while training."""
        return list(dict.fromkeys(name for row in self.evaluation.values() for name in row if name != "step"))

    @property
    def losses(self) -> list[str]:
        """The names of the terms of the loss; without those that are always 0."""
        others = _OTHERS.union(self.scores, ["loss"])
        names = dict.fromkeys(name for log in self.history for name in log if name not in others)
        return [name for name in names if any(self.column(name)[1])]

    @property
    def stages(self) -> list[tuple[int, str]]:
        """(first step, its number and what trains) of each stage of training but the first."""
        plan = enumerate(self.recipe.plan(), 1)
        names = [(n, stage.first, ", ".join(group.name for group in stage.groups)) for n, stage in plan]
        return [(first, f"stage {n}: {groups}") for n, first, groups in names[1:]]


def read_run(run: PostTrainResult | str | os.PathLike[str]) -> Run:
    """The record of a result, or of a run folder; DataError names a file that is missing or damaged."""
    if isinstance(run, PostTrainResult):
        logs = _logs(run.history, "the result's history")
        results = {moment: _measured(found, "the result") for moment, found in run.evaluations.items()}
        return Run(run.recipe.name, run.recipe, logs, run.report, results=results)
    folder = as_path(run)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a run folder: give the output_dir of a training run")
    try:
        recipe = Recipe.from_dict(read_json(folder / "recipe.json", dict))
    except ConfigError as err:
        raise DataError(f"{folder}/recipe.json is not a recipe of this version of diva_rs: {err}") from err
    notes: list[str] = []
    history = _history(folder, notes)
    report, origin = (
        read_json(file, dict) if file.exists() else {}
        for file in (folder / "report.json", folder / "run.json")
    )
    if not (folder / "report.json").exists():
        notes.append("There is no report.json: the run has not ended, or an error ended it.")
    results = {
        moment: _measured(read_json(file, dict), str(file))
        for moment in ("before", "after")
        if (file := folder / f"evaluations-{moment}.json").exists()
    }
    return Run(folder.resolve().name, recipe, history, report, tuple(notes), origin, results)


def number(value: Any) -> float:
    """A finite number of a JSON file as a float; NaN for any other value.

    >>> number(3), number(True), number("3"), number(10**400)
    (3.0, nan, nan, nan)
    """
    try:
        plain = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        plain = False
    return float(value) if plain else math.nan


def positive(value: Any) -> float | None:
    """A positive number of a JSON file; None for any other value."""
    found = number(value)
    return found if found > 0 else None


def _measured(found: Mapping[str, Any], where: str) -> list[Any]:
    """The results in what `post_train` keeps of its evaluations."""
    try:
        return [entry["result"] for entries in found.values() for entry in entries]
    except (TypeError, LookupError) as err:
        raise DataError(f"{where} holds no evaluations of post_train") from err


def _history(folder: Path, notes: list[str]) -> tuple[dict[str, float], ...]:
    file = folder / "history.json"
    if file.exists():
        return _logs(read_json(file, list), str(file))
    file = folder / "metrics.jsonl"
    try:
        lines = read_text(file).splitlines()
    except (OSError, ValueError) as err:
        raise DataError(f"{file} cannot be read: {err}") from err
    rows = []
    for line in lines:
        with suppress(ValueError, RecursionError):  # a crash may cut a line short; the others are whole
            rows.append(json.loads(line))
    if len(rows) < len(lines):
        damaged = f"{len(lines) - len(rows)} of {len(lines)} lines"
        notes.append(f"{damaged} of metrics.jsonl are damaged and left out.")
    return _logs(rows, str(file))


def _logs(rows: list[Any], where: str) -> tuple[dict[str, float], ...]:
    logs = []
    for n, row in enumerate(rows):
        values = {str(k): number(v) for k, v in row.items()} if isinstance(row, Mapping) else {}
        if math.isnan(values.get("step", math.nan)):
            raise DataError(f"{where}: entry {n} is not a log of post_train: it has no number 'step'")
        logs.append(values)
    return tuple(logs)
