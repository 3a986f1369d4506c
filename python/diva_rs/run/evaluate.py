"""Evaluation during training: scores every few steps, the best weights kept, and a guard that ends the run.

Training is not disturbed by it: the weights after a run are the same bits with and without.
"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diva_rs._base.checkpoint import load_weights, save_weights
from diva_rs._base.files import read_text, replacing, write_json
from diva_rs._base.settings import choice, hint, number
from diva_rs.clip.wrappers import own_weights
from diva_rs.errors import ConfigError, DataError, WeightsError, shown
from diva_rs.evaluation.measures import Metric, as_metrics, measure
from diva_rs.step.trainer import Trainer

ARGUMENTS = ("evaluate", "eval_every", "best", "guard")
_LOGGED = {
    "step", "loss", "denoising", "anchor", "grad_norm", "lr", "epoch", "samples", "samples_per_second",
    "waiting",
}  # fmt: skip
_KIND = choice("min", "max", "drop")  # of a bound
_BEST_FILES = {"clip.safetensors", "projector.safetensors", "scores.json"}


@dataclass(frozen=True)
class Bound:
    """What a score must keep to: "min" and "max" are values, "drop" is below the score before training."""

    kind: str
    value: float

    def limit(self, before: float) -> float:
        """The lowest (for "max" the highest) score that is allowed, given the one before training."""
        return before - self.value if self.kind == "drop" else self.value

    def keeps(self, score: float, before: float) -> bool:
        """Whether the score is allowed; one that is not finite is not."""
        limit = self.limit(before)
        return score <= limit if self.kind == "max" else score >= limit


@dataclass(frozen=True)
class Evaluation:
    """What is measured during training, by `post_train`'s arguments of the same names.

    Attributes:
        evaluate: name -> function of the model.
        eval_every: after how many steps; None: before the first and after the last step only.
        best: the score that decides which weights are kept, and whether it is better "max" or "min".
        guard: score -> its bound.
    """

    evaluate: dict[str, Metric]
    eval_every: int | None
    best: tuple[str, str] | None
    guard: dict[str, Bound]

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Evaluation | None":
        """From `post_train`'s arguments; None where nothing is to be evaluated.

        Raises:
            ConfigError: an argument is out of range, or has nothing to work on.

        >>> Evaluation.of({"evaluate": {"one": lambda clip: 1.0}, "guard": {"one": 0.5}}).guard
        {'one': Bound(kind='min', value=0.5)}
        """
        evaluate = given.get("evaluate")
        if evaluate is None:
            for name in ARGUMENTS:
                if given.get(name) is not None:
                    raise ConfigError(
                        f"{name}={shown(given[name])} has nothing to go by: give evaluate= as well, a "
                        "function of the model or a mapping of names to such functions"
                    )
            return None
        every = given.get("eval_every")
        if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise ConfigError(f"eval_every={shown(every)}: a number of steps from 1, or None, is needed")
        guard = given.get("guard")
        if guard is not None and not isinstance(guard, Mapping):
            raise ConfigError(
                f"guard={shown(guard)}: a mapping of scores to bounds is needed, e.g. {{'zero_shot': 70.0}}"
            )
        return cls(
            evaluate=as_metrics(evaluate),
            eval_every=every,
            best=_best(given.get("best")),
            guard={
                name if isinstance(name, str) else shown(name): _bound(name, bound)
                for name, bound in (guard or {}).items()
            },
        )


class Watch:
    """The evaluations of one run: what they found, and what they keep.

    Args:
        evaluation: what is asked for.
        trainer: what trains, at the step that the run begins with or goes on from.
        folder: the run's folder, or None. There, ``evaluations.json`` holds every score and ``best`` the
            weights that are kept.

    Raises:
        DataError: ``best`` in the folder holds something else.
    """

    def __init__(self, evaluation: Evaluation, trainer: Trainer, folder: Path | None) -> None:
        self.asked, self.trainer, self.folder = evaluation, trainer, folder
        self.seconds = 0.0
        self.rows: list[dict[str, float]] = []
        self._kept: dict[str, Tensor] | None = None
        self._kept_row: dict[str, float] | None = None
        if folder is None:
            return
        others = {file.name for file in (folder / "best").glob("*")} - _BEST_FILES
        if others:
            raise DataError(
                f"{folder / 'best'} holds {min(others)!r}, which no run wrote: choose another folder"
            )
        if trainer.steps_done:
            self._read_back(folder)

    @property
    def stopped(self) -> str | None:
        """Why the guard ends the run; None while every bound is kept."""
        row = self.rows[-1] if self.rows else {}
        for name, bound in self.asked.guard.items():
            before = self.rows[0].get(name, math.nan) if self.rows else math.nan
            if name in row and not bound.keeps(row[name], before):
                over = "above" if bound.kind == "max" else "below"
                return f"{name} is {row[name]:g} at step {row['step']}, {over} {bound.limit(before):g}"
        return None

    def begin(self) -> None:
        """Measure the model as it is before the first step.

        Raises:
            ConfigError: ``best`` or ``guard`` names a score that is not measured, or a bound is broken
                already.
        """
        if self.rows:
            return
        scores = self.look(self.trainer.steps_done)
        for name in (*([self.asked.best[0]] if self.asked.best else []), *self.asked.guard):
            if name not in scores:
                near = hint(name, scores) or f": measured are {', '.join(scores)}"
                raise ConfigError(f"best and guard go by scores, and {name!r} is none{near}")
        taken = sorted(scores.keys() & _LOGGED)
        if taken:
            raise ConfigError(f"a score is called {taken[0]!r}, as what the log holds anyway: rename it")
        if self.stopped is not None:
            raise ConfigError(f"guard: {self.stopped}, before the first step: nothing was trained")

    def due(self, step: int) -> bool:
        """Whether this step is to be evaluated."""
        every = self.asked.eval_every
        return step == self.trainer.recipe.steps or (every is not None and step % every == 0)

    def look(self, step: int) -> dict[str, float]:
        """Measure, note and keep what is to be kept; returns the scores."""
        started = time.perf_counter()
        scores = measure(self.asked.evaluate, self.trainer.clip)
        self.rows.append({"step": step, **scores})
        if self._is_best():
            self._keep()
        if self.folder is not None:
            write_json(self.folder / "evaluations.json", self.rows)
        self.seconds += time.perf_counter() - started
        return scores

    def best_score(self, step: int) -> float | None:
        """The score that ``best`` asks for, where this step's weights are the best so far; None where not."""
        kept = self._kept_row
        if self.asked.best is None or kept is None or kept["step"] != step:
            return None
        return kept.get(self.asked.best[0])

    def restore(self) -> None:
        """Put the kept weights back, where the guard has ended the run."""
        if self._kept is None:
            return
        with torch.no_grad():
            for name, parameter in self.trainer.parameters().items():
                parameter.copy_(self._kept[name])

    def report(self) -> dict[str, Any]:
        """For the result: the scores before and after, the best, why the run was stopped."""
        found: dict[str, Any] = {
            "before": self.rows[0],
            "after": self.rows[-1],
            "seconds": round(self.seconds, 3),
        }
        if self._kept_row is not None:
            found["best"] = self._kept_row
        why = self.stopped
        if why is not None and self._kept_row is not None:
            why += f"; the weights are those of step {self._kept_row['step']}"
        return {"evaluation": found, "stopped": why}

    def _is_best(self) -> bool:
        """Whether the newest weights are to be kept in place of those that are."""
        if (self.asked.best is None and not self.asked.guard) or self.stopped is not None:
            return False
        if self.asked.best is None or self._kept_row is None:
            return True
        name, direction = self.asked.best
        new, old = self.rows[-1].get(name, math.nan), self._kept_row.get(name, math.nan)
        if math.isnan(old):
            return not math.isnan(new)
        return new < old if direction == "min" else new > old

    def _keep(self) -> None:
        # On the host: a second CLIP may not fit beside the teacher.
        self._kept = {
            name: parameter.detach().to("cpu", copy=True)
            for name, parameter in self.trainer.parameters().items()
        }
        self._kept_row = self.rows[-1]
        if self.folder is None:
            return
        with replacing(self.folder / "best") as beside:
            beside.mkdir()
            save_weights(beside / "clip.safetensors", own_weights(self.trainer.clip))
            save_weights(beside / "projector.safetensors", self.trainer.projector.state_dict())
            write_json(beside / "scores.json", self._kept_row)

    def _read_back(self, folder: Path) -> None:
        """What earlier starts of this run found, up to the step that it goes on from."""
        done = self.trainer.steps_done
        self.rows = [row for row in _read_rows(folder / "evaluations.json") if row["step"] <= done]
        kept = _read_rows(folder / "best" / "scores.json")
        if not kept or kept[0]["step"] not in [row["step"] for row in self.rows]:
            return  # of steps that come again
        weights = load_weights(folder / "best" / "clip.safetensors")
        projector = load_weights(folder / "best" / "projector.safetensors")
        weights.update({f"projector.{name}": value for name, value in projector.items()})
        try:
            self._kept = {name: weights[name] for name in self.trainer.parameters()}
        except KeyError as err:
            raise WeightsError(f"{folder / 'best'} holds no {err}: resume=False starts anew") from err
        self._kept_row = kept[0]


def _best(best: Any) -> tuple[str, str] | None:
    if best is None:
        return None
    name, direction = (best, "max") if isinstance(best, str) else best if _is_pair(best) else (None, None)
    if not isinstance(name, str) or not isinstance(direction, str) or direction not in ("max", "min"):
        raise ConfigError(
            f"best={shown(best)}: the name of a score, or (name, 'min') where lower is better, is needed"
        )
    return name, direction


def _bound(name: Any, bound: Any) -> Bound:
    kind, value = bound if _is_pair(bound) else ("min", bound)
    try:
        kind = _KIND.convert(kind)
        value = number(least=0 if kind == "drop" else None).convert(value)
    except (ValueError, OverflowError) as err:
        raise ConfigError(
            f"guard={{{shown(name)}: {shown(bound)}}}: the lowest score that is allowed is needed, or "
            "('min', lowest), "
            "('max', highest), or ('drop', how far below the score before training)"
        ) from err
    return Bound(kind, value)


def _is_pair(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2


def _read_rows(path: Path) -> list[dict[str, float]]:
    """Rows of a JSON file; none where there is no file."""
    try:
        content = json.loads(read_text(path))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as err:
        raise WeightsError(f"{path} cannot be read: {err}; resume=False starts anew") from err
    rows = content if isinstance(content, list) else [content]
    if not all(isinstance(row, dict) and isinstance(row.get("step"), int) for row in rows):
        raise WeightsError(f"{path} holds no evaluations; resume=False starts anew")
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]
