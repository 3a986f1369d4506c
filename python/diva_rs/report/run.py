"""What a report knows of a run: from a `PostTrainResult`, or from the files of a run folder."""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diva_rs._base.files import read_text
from diva_rs.errors import ConfigError, DataError
from diva_rs.recipes.recipe import Recipe
from diva_rs.run.result import PostTrainResult

Log = dict[str, float]


@dataclass(frozen=True)
class Run:
    """A run's record.

    Attributes:
        name: what to call it: the folder's name, or the recipe's.
        recipe: as it was run.
        history: one dict per log, with "step" in each; NaN where a value was not finite.
                report: what was trained on what; empty where the run has not come to its end.
        origin: what a run folder also tells (run.json): the fingerprints of the models, and its starts.

        notes: what could not be read, in words.
    """

    name: str
    recipe: Recipe
    history: tuple[Log, ...]
    report: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)

    def column(self, name: str) -> tuple[list[float], list[float]]:
        """(steps, values) of a logged number, NaN where a log has none.

        >>> read_run(result).column("step")
        ([1.0, 2.0], [1.0, 2.0])
        """
        steps = [log["step"] for log in self.history]
        return steps, [log.get(name, math.nan) for log in self.history]


def read_run(run: "PostTrainResult | str | os.PathLike[str]") -> Run:
    """The record of a result, or of a run folder (recipe.json, history.json or metrics.jsonl, report.json,
    run.json).

    Raises:
        DataError: a file is missing, damaged, or not what `post_train` writes; names it.
        ConfigError: ``run`` is neither a result nor a path.

    >>> read_run(result).recipe.name
    'custom'
    """
    if isinstance(run, PostTrainResult):
        return Run(run.recipe.name, run.recipe, _logs(run.history, "the result's history"), run.report)
    if not isinstance(run, (str, os.PathLike)):
        raise ConfigError(f"run is a {type(run).__name__}: give a PostTrainResult or a run folder")
    folder = Path(run).expanduser()
    if not folder.is_dir():
        raise DataError(f"{folder} is no run folder: give the output_dir of a training run")
    recipe = _recipe(folder)
    notes: list[str] = []
    history = _history(folder, notes)
    report: Mapping[str, Any] = {}
    if (folder / "report.json").exists():
        report = _object(folder / "report.json")
    else:
        notes.append("The run has left no report.json: it is still running, or it ended by an error.")
    origin = _object(folder / "run.json") if (folder / "run.json").exists() else {}
    return Run(folder.resolve().name, recipe, history, report, tuple(notes), origin)


def read_json(file: Path) -> Any:
    """The content of a JSON file. Raises DataError, naming the file, where it cannot be read.

    >>> read_json(Path("nowhere.json"))
    Traceback (most recent call last):
    diva_rs.errors.DataError: nowhere.json cannot be read: No such file or directory
    """
    try:
        return json.loads(read_text(file))
    except OSError as err:
        raise DataError(f"{file} cannot be read: {err.strerror or err}") from err
    except (ValueError, RecursionError) as err:
        raise DataError(f"{file} holds no valid JSON: {err}") from err


def _recipe(folder: Path) -> Recipe:
    file = folder / "recipe.json"
    content = _object(file)
    try:
        return Recipe.from_dict(content)
    except ConfigError as err:
        raise DataError(f"{file} holds no recipe of this version of diva_rs: {err}") from err


def _history(folder: Path, notes: list[str]) -> tuple[Log, ...]:
    file = folder / "history.json"
    if file.exists():
        return _logs(_expect(file, read_json(file), list, "a list"), str(file))
    file = folder / "metrics.jsonl"
    try:
        lines = read_text(file).splitlines()
    except (OSError, ValueError) as err:
        raise DataError(f"{file} cannot be read: {err}") from err
    rows, cut = [], 0
    for line in lines:
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            cut += 1  # a crash may cut a line short; the others are whole
    if cut:
        notes.append(f"{cut} of {len(lines)} lines of metrics.jsonl are damaged and left out.")
    return _logs(rows, str(file))


def _logs(rows: list[Any], where: str) -> tuple[Log, ...]:
    logs = []
    for n, row in enumerate(rows):
        values = {str(k): number(v) for k, v in row.items()} if isinstance(row, Mapping) else {}
        if not math.isfinite(values.get("step", math.nan)):
            raise DataError(f"{where}: entry {n} is no log of post_train: it has no number 'step'")
        logs.append(values)
    return tuple(logs)


def number(value: Any) -> float:
    """A number of a JSON file as a float; NaN for whatever is none.

    >>> number(3), number(True), number("3"), number(10**400)
    (3.0, nan, nan, nan)
    """
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    try:
        return float(value) if plain else math.nan
    except OverflowError:  # an integer beyond every float
        return math.nan


def _object(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = _expect(file, read_json(file), dict, "an object")
    return content


def _expect(file: Path, content: Any, kind: Callable[..., Any], words: str) -> Any:
    if not isinstance(content, kind):  # type: ignore[arg-type]
        raise DataError(f"{file} holds {type(content).__name__}, not {words}")
    return content
