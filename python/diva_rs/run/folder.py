"""The folder of a run, from which it resumes after any crash.

run.json        the recipe and its hash, the models, and the environment of every start
recipe.txt, recipe.json
                the recipe to read, and as JSON
metrics.jsonl   one line per log
clip.safetensors, projector.safetensors, history.json, report.json
                at the end: the trained weights, the logs, and the result with images used and backend
best.json       step and score of the best checkpoint, where something was scored
evaluations.json, evaluations-before.json, evaluations-after.json, best/
                what was measured while training, and the best weights (see `evaluator`)
checkpoints/step-00000500/
                parameters.safetensors (what trains), optimizer.safetensors,
                state.json (counters, progress), manifest.json (checksums)
"""

import fcntl
import json
import logging
import math
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from diva_rs._base.checkpoint import check_place, load_state, save_state
from diva_rs._base.files import (
    make_folder,
    read_json,
    read_lines,
    remove_folder,
    sync,
    write_json,
    write_text,
)
from diva_rs._base.leftovers import sweep
from diva_rs.errors import ConfigError, DataError, WeightsError
from diva_rs.recipes.recipe import Recipe

_log = logging.getLogger("diva_rs")

_LONGEST_LOG = 1 << 30  # bytes of metrics.jsonl: three million rows
_STEP = re.compile(r"step-(\d{8,})")
_EVALUATIONS = ("evaluations", "evaluations-before", "evaluations-after")
_JSON = ("run", "best", "recipe", "history", "report", *_EVALUATIONS)
_MODELS = ("clip", "projector", "denoiser", "low_rank", "adapter_model")
_WEIGHTS = ("adapter_config.json", *(f"{name}.safetensors" for name in _MODELS))


class RunFolder:
    """A run's folder on disk, opened by the one process that writes into it.

    Raises DataError where the folder cannot be made, or holds something else where a checkpoint
    belongs, and ConfigError where another process is writing into it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = make_folder(path)
        self.checkpoints = make_folder(self.path / "checkpoints")
        self.metrics = self.path / "metrics.jsonl"
        self._lock = self._locked()
        for step in self.steps():
            check_place(self.checkpoint(step))  # now, not at the end of the run
        for folder in (self.path, self.checkpoints):
            sweep(folder)

    def close(self) -> None:
        """Let another process write here."""
        os.close(self._lock)

    def checkpoint(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.checkpoints / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order."""
        names = (_STEP.fullmatch(name) for name in os.listdir(self.checkpoints))
        return sorted(int(name[1]) for name in names if name)

    def save(self, state: Mapping[str, Any], step: int, keep: int) -> None:
        """Write a checkpoint, then remove all but the last ``keep`` and the best."""
        with suppress(FileNotFoundError):
            sync(self.metrics)  # the rows up to the checkpoint must not get lost
        save_state(self.checkpoint(step), state)
        spared = {*self.steps()[-keep:], step, self.best().get("step")}
        for old in self.steps():
            if old not in spared:
                remove_folder(self.checkpoint(old))

    def restore(self) -> dict[str, Any] | None:
        """The newest intact checkpoint; None if there is none. Damaged ones are set aside with a warning;
        WeightsError where all are damaged.
        """
        damaged: list[WeightsError] = []
        for step in reversed(self.steps()):
            folder = self.checkpoint(step)
            try:
                return load_state(folder)
            except WeightsError as err:
                damaged.append(err)
                _log.warning("%s: the checkpoint before it is used", err)
                aside = folder.with_name(f"damaged-{folder.name}")
                remove_folder(aside)
                os.replace(folder, aside)
        if not damaged:
            return None
        where = f"in {self.checkpoints} ({damaged[0]})"
        raise WeightsError(f"no intact checkpoint is left {where}: resume=False starts again")

    def best(self) -> dict[str, Any]:
        """Step and score of the best checkpoint; empty where nothing was scored."""
        return dict(read_record(self.path / "best.json", dict) or {})

    def mark_best(self, step: int, score: float) -> None:
        """Keep the checkpoint of this step until a better one is marked."""
        write_json(self.path / "best.json", {"step": step, "score": score})

    def recipe(self) -> Recipe | None:
        """The recipe of the run in this folder; None where there is no run yet."""
        facts = self.facts()
        if facts is None:
            return None
        try:
            return Recipe.from_dict(facts["recipe"])
        except (KeyError, TypeError, ConfigError) as err:
            where = self.path / "run.json"
            raise WeightsError(f"{where} holds no recipe ({err}): resume=False starts again") from err

    def facts(self) -> dict[str, Any] | None:
        """The content of run.json; None where there is no run yet."""
        found: dict[str, Any] | None = read_record(self.path / "run.json", dict)
        return found

    def begin(self, recipe: Recipe, facts: Mapping[str, Any], step: int) -> None:
        """Write that the run starts at ``step``, from ``facts`` about its models."""
        starts = [] if step == 0 else (self.facts() or {}).get("starts", [])
        self._remove("history.json", "report.json")  # of an earlier start
        about = dict(facts)
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        start = {"at": at, "step": step, "environment": about.pop("environment")}
        content = {"format": 1, "recipe": recipe.to_dict(), "recipe_sha256": recipe.digest(), **about}
        content |= {"launch": os.environ.get("TORCHELASTIC_RUN_ID"), "starts": [*starts, start]}
        write_json(self.path / "run.json", content)
        write_json(self.path / "recipe.json", recipe.to_dict())
        write_text(self.path / "recipe.txt", recipe.describe() + "\n")

    def clear(self) -> None:
        """Remove an earlier run: its log, its checkpoints and its results."""
        for step in self.steps():
            remove_folder(self.checkpoint(step))
        if (self.path / "best" / "scores.json").exists():
            remove_folder(self.path / "best")
        self._remove("metrics.jsonl", *_WEIGHTS, *(f"{name}.json" for name in _JSON))

    def rows(self, step: int) -> list[dict[str, Any]]:
        """The log up to ``step``. Later rows, whose steps come again, and cut-off lines are removed."""
        lines, rows = [], []
        try:
            for line in read_lines(self.metrics, _LONGEST_LOG) if self.metrics.exists() else ():
                with suppress(ValueError, RecursionError):  # a line that is cut off
                    row = json.loads(line.decode())
                    if isinstance(row, dict) and isinstance(row.get("step"), int) and row["step"] <= step:
                        lines.append(f"{line.decode()}\n")
                        rows.append(with_nan(row))
        except OSError as err:
            raise DataError(f"{self.metrics} cannot be read: {err}") from err
        write_text(self.metrics, "".join(lines))
        return rows

    def _remove(self, *names: str) -> None:
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def _locked(self) -> int:
        """Lock the folder until the process ends. Unlike flock, workers do not inherit the lock."""
        try:
            handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as err:
            raise DataError(f"{self.path} cannot be written to: {err.strerror or err}") from err
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            os.close(handle)
            raise ConfigError(f"another process is writing into {self.path}: choose another one") from err
        except OSError:
            pass  # a file system without locks
        return handle


def read_record(path: Path, kind: type = object) -> Any:
    """The content of a JSON file of a run, of this type; None where there is no file. Raises WeightsError."""
    try:
        return read_json(path, kind, WeightsError) if path.exists() else None
    except WeightsError as err:
        raise WeightsError(f"{err}; resume=False starts again") from err


def with_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of scores as it was before JSON, which writes null for a number that is not finite."""
    return {name: math.nan if value is None else value for name, value in row.items()}
