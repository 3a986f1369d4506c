"""Evaluation during training: scores, the best weights, and bounds that end the run.

Training is not disturbed: the weights after a run are the same bits with and without.
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
from diva_rs._base.settings import hint
from diva_rs.clip.wrappers import own_weights
from diva_rs.errors import ConfigError, DataError, WeightsError, shown
from diva_rs.evaluation.measures import Metric, as_metrics, measure
from diva_rs.run.provenance import trained_denoiser
from diva_rs.step.trainer import Trainer

ARGUMENTS = ("evaluate", "eval_every", "best", "guard")
_LOGGED = ("step", "stage", "grad_norm", "lr", "epoch", "samples", "samples_per_second", "skipped", "waiting")
_BEST_FILES = {"clip.safetensors", "projector.safetensors", "denoiser.safetensors", "scores.json"}


@dataclass(frozen=True)
class Bound:
    """A bound of a score: "min" and "max" are values, "drop" is below the score before training."""

    kind: str
    value: float

    @classmethod
    def of(cls, name: str, bound: Any) -> "Bound":
        """From a number, the lowest score allowed, or a pair of kind and number."""
        try:
            kind, value = bound if isinstance(bound, (tuple, list)) else ("min", bound)
            if kind in ("min", "max", "drop") and math.isfinite(value) and (kind != "drop" or value >= 0):
                return cls(kind, float(value))
        except (TypeError, ValueError, OverflowError):
            pass
        raise ConfigError(
            f"guard={{{name!r}: {shown(bound)}}}: give the lowest score that is allowed, or ('min', lowest), "
            "('max', highest), or ('drop', points below the score before training)"
        )

    def limit(self, before: float) -> float:
        """The lowest (for "max" the highest) score allowed, given the one before training."""
        return before - self.value if self.kind == "drop" else self.value

    def keeps(self, score: float, before: float) -> bool:
        """Whether the score is allowed; one that is not a number is not."""
        limit = self.limit(before)
        return score <= limit if self.kind == "max" else score >= limit


@dataclass(frozen=True)
class Evaluation:
    """`post_train`'s arguments of the same names, checked.

    >>> Evaluation.of({"evaluate": {"one": lambda clip: 1.0}, "guard": {"one": 0.5}}).guard
    {'one': Bound(kind='min', value=0.5)}
    """

    evaluate: dict[str, Metric]
    eval_every: int | None
    best: tuple[str, str] | None  # a score, and whether "max" or "min" is better
    guard: dict[str, Bound]

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Evaluation | None":
        """From `post_train`'s arguments; None where there is nothing to evaluate."""
        if given.get("evaluate") is None:
            for name in ARGUMENTS:
                if given.get(name) is not None:
                    raise ConfigError(
                        f"{name}={shown(given[name])} needs scores: give evaluate= as well, a function of "
                        "the model or a mapping of names to such functions"
                    )
            return None
        every, guard = given.get("eval_every"), given.get("guard") or {}
        if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise ConfigError(f"eval_every={shown(every)}: a number of steps from 1, or None, is needed")
        if not isinstance(guard, Mapping):
            raise ConfigError(f"guard={shown(guard)}: a mapping of scores to bounds is needed")
        bounds = {name: Bound.of(name, bound) for name, bound in guard.items()}
        return cls(as_metrics(given["evaluate"]), every, _best(given.get("best")), bounds)


class Evaluator:
    """The evaluations of one run: their scores, and the weights that are kept.

    Args:
        evaluation: what is measured.
        trainer: what trains, at the step where the run begins or resumes.
        folder: the run's folder, or None. There, ``evaluations.json`` holds every score and
            ``best`` the weights that are kept.
    """

    def __init__(self, evaluation: Evaluation, trainer: Trainer, folder: Path | None) -> None:
        self.evaluation, self.trainer, self.folder = evaluation, trainer, folder
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
        for name, bound in self.evaluation.guard.items():
            before = self.rows[0].get(name, math.nan) if self.rows else math.nan
            if name in row and not bound.keeps(row[name], before):
                over = "above" if bound.kind == "max" else "below"
                return f"{name} is {row[name]:g} at step {row['step']}, {over} {bound.limit(before):g}"
        return None

    def begin(self) -> None:
        """Measure before the first step, and check that ``best`` and ``guard`` name scores."""
        if self.rows:
            return
        scores = self.measure(self.trainer.steps_done)
        best = self.evaluation.best
        for name in (*(best[:1] if best else ()), *self.evaluation.guard):
            if name not in scores:
                near = hint(name, scores) or f": measured are {', '.join(scores)}"
                raise ConfigError(f"best and guard name scores, and {name!r} is not one{near}")
        taken = sorted(scores.keys() & {*_LOGGED, *self.trainer.loss_names})
        if taken:
            raise ConfigError(f"a score is named {taken[0]!r}, which the log uses already: rename it")
        if self.stopped is not None:
            raise ConfigError(f"guard: {self.stopped}, before the first step: nothing was trained")

    def due(self, step: int) -> bool:
        """Whether this step is evaluated."""
        every = self.evaluation.eval_every
        return step == self.trainer.recipe.steps or (every is not None and step % every == 0)

    def measure(self, step: int) -> dict[str, float]:
        """Measure the model, write the scores, and keep the weights if they are the best."""
        started = time.perf_counter()
        scores = measure(self.evaluation.evaluate, self.trainer.clip)
        self.rows.append({"step": step, **scores})
        if self._is_best():
            self._keep()
        if self.folder is not None:
            write_json(self.folder / "evaluations.json", self.rows)
        self.seconds += time.perf_counter() - started
        return scores

    def best_score(self, step: int) -> float | None:
        """The score named by ``best``, where this step's weights are the best so far."""
        kept = self._kept_row
        if self.evaluation.best is None or kept is None or kept["step"] != step:
            return None
        return kept.get(self.evaluation.best[0])

    def restore(self) -> None:
        """Put the kept weights back, where the guard has ended the run."""
        if self._kept is None:
            return
        with torch.no_grad():
            for name, parameter in self.trainer.parameters().items():
                parameter.copy_(self._kept[name])

    def report(self) -> dict[str, Any]:
        """For the result: the scores before and after, the best, and why the run was stopped."""
        found: dict[str, Any] = {
            "before": self.rows[0],
            "after": self.rows[-1],
            "seconds": round(self.seconds, 3),
        }
        why = self.stopped
        if self._kept_row is not None:
            found["best"] = self._kept_row
            if why is not None:
                why += f"; the weights are those of step {self._kept_row['step']}"
        return {"evaluation": found, "stopped": why}

    def _is_best(self) -> bool:
        best = self.evaluation.best
        if (best is None and not self.evaluation.guard) or self.stopped is not None:
            return False
        if best is None or self._kept_row is None:
            return True
        name, direction = best
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
            denoiser = trained_denoiser(self.trainer)
            if denoiser is not None:
                save_weights(beside / "denoiser.safetensors", denoiser.state_dict())
            write_json(beside / "scores.json", self._kept_row)

    def _read_back(self, folder: Path) -> None:
        """Read what earlier starts of this run measured, up to the step where it resumes."""
        done = self.trainer.steps_done
        self.rows = [row for row in _read_rows(folder / "evaluations.json") if row["step"] <= done]
        kept = _read_rows(folder / "best" / "scores.json")
        if not kept or kept[0]["step"] not in [row["step"] for row in self.rows]:
            return  # of a step that comes again
        weights = load_weights(folder / "best" / "clip.safetensors")
        for part in ("projector", *(["denoiser"] if trained_denoiser(self.trainer) else [])):
            found = load_weights(folder / "best" / f"{part}.safetensors")
            weights.update({f"{part}.{name}": value for name, value in found.items()})
        try:
            self._kept = {name: weights[name] for name in self.trainer.parameters()}
        except KeyError as err:
            raise WeightsError(f"{folder / 'best'} holds no {err}: resume=False starts again") from err
        self._kept_row = kept[0]


def _best(best: Any) -> tuple[str, str] | None:
    if best is None:
        return None
    pair = (best, "max") if isinstance(best, str) else tuple(best) if isinstance(best, (tuple, list)) else ()
    if len(pair) != 2 or not isinstance(pair[0], str) or pair[1] not in ("max", "min"):
        raise ConfigError(f"best={shown(best)}: give a score, or (score, 'min') where lower is better")
    return pair[0], pair[1]


def _read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a JSON file; none where there is no file."""
    try:
        content = json.loads(read_text(path))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as err:
        raise WeightsError(f"{path} cannot be read: {err}; resume=False starts again") from err
    rows = content if isinstance(content, list) else [content]
    if not all(isinstance(row, dict) and isinstance(row.get("step"), int) for row in rows):
        raise WeightsError(f"{path} holds no evaluations; resume=False starts again")
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]
