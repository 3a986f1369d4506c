"""Evaluation during training: scores, the best weights, and bounds that end the run.

Training is not disturbed: the weights after a run are the same bits with and without.
"""

import math
import operator
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diva_rs._base.checkpoint import load_weights
from diva_rs._base.files import names_in, replacing, write_json
from diva_rs._base.settings import hint
from diva_rs.distributed import alone
from diva_rs.errors import ConfigError, DataError, WeightsError, shown
from diva_rs.evaluation.measures import Metric, as_metrics, measure
from diva_rs.run.folder import read_record, with_nan
from diva_rs.run.provenance import trained_denoiser
from diva_rs.run.result import save_models
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
    def of(cls, bound: Any) -> "Bound":
        """From a number, the lowest score allowed, or a pair of kind and number; raises ValueError."""
        kind, value = bound if isinstance(bound, (tuple, list)) else ("min", bound)
        if kind not in ("min", "max", "drop") or not math.isfinite(value) or (kind == "drop" and value < 0):
            raise ValueError(bound)
        return cls(kind, float(value))

    def broken_by(self, score: float, before: float) -> str | None:
        """How a score, which was ``before`` before training, breaks the bound ("below 0.5"); None where
        it does not. A score that is not a number does.
        """
        limit = before - self.value if self.kind == "drop" else self.value
        if self.kind == "max":
            return None if score <= limit else f"above {limit:g}"
        return None if score >= limit else f"below {limit:g}"


@dataclass(frozen=True)
class Evaluation:
    """`post_train`'s arguments of the same names, checked.

    >>> Evaluation.of({"one": lambda clip: 1.0}, guard={"one": 0.5}).guard
    {'one': Bound(kind='min', value=0.5)}
    """

    evaluate: dict[str, Metric]
    eval_every: int | None
    best: tuple[str, str] | None  # a score, and whether "max" or "min" is better
    guard: dict[str, Bound]

    @classmethod
    def of(
        cls, evaluate: Any = None, eval_every: int | None = None, best: Any = None, guard: Any = None
    ) -> "Evaluation | None":
        """From `post_train`'s arguments; None where there is nothing to evaluate."""
        if evaluate is None:
            if (eval_every, best, guard) != (None, None, None):
                raise ConfigError("eval_every, best and guard need scores: give evaluate= as well")
            return None
        if eval_every is not None and operator.index(eval_every) < 1:
            raise ConfigError(f"eval_every={eval_every}: give a number of steps from 1, or None")
        pair = (best, "max") if isinstance(best, str) else best
        if pair is not None and not (isinstance(pair, (tuple, list)) and [*pair[1:]] in (["max"], ["min"])):
            raise ConfigError(f"best={shown(best)}: give a score, or (score, 'min') where lower is better")
        try:
            bounds = {name: Bound.of(bound) for name, bound in dict(guard or {}).items()}
        except (TypeError, ValueError, OverflowError) as err:
            raise ConfigError(
                f"guard={shown(guard)}: give a mapping of scores to the lowest score that is allowed, or to "
                "('min', lowest), ('max', highest) or ('drop', points below the score before training)"
            ) from err
        return cls(as_metrics(evaluate), eval_every, None if pair is None else (pair[0], pair[1]), bounds)


class Evaluator:
    """The evaluations of one run: their scores, and the weights that are kept.

    In the run's folder ``evaluations.json`` holds every score, and ``best`` the kept weights.
    """

    def __init__(self, evaluation: Evaluation, trainer: Trainer, folder: Path | None) -> None:
        self.evaluation, self.trainer, self.folder = evaluation, trainer, folder
        self.seconds = 0.0
        self.rows: list[dict[str, float]] = []
        self._kept: dict[str, Tensor] | None = None
        self._kept_row: dict[str, float] | None = None
        if folder is None:
            return
        others = set(names_in(folder / "best")) - _BEST_FILES
        if others:
            raise DataError(
                f"{folder / 'best'} holds {min(others)!r}, which no run wrote: choose another folder"
            )
        if trainer.steps_done:
            self._read_back(folder)

    @property
    def stopped(self) -> str | None:
        """Why the guard ends the run; None while every bound is kept."""
        for name, bound in self.evaluation.guard.items():
            scores = [row.get(name, math.nan) for row in self.rows if name in self.rows[-1]]
            how = bound.broken_by(scores[-1], scores[0]) if scores else None
            if how is not None:
                return f"{name} is {scores[-1]:g} at step {self.rows[-1]['step']}, {how}"
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
        """Measure the model, write the scores, and keep the weights if they are the best. The other
        ranks wait.
        """
        started = time.perf_counter()
        with alone():
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
        scores = [row.get(name, math.nan) for row in (self.rows[-1], self._kept_row)]
        new, old = (-score if direction == "min" else score for score in scores)
        return new > old or (math.isnan(old) and not math.isnan(new))

    def _keep(self) -> None:
        trainer = self.trainer
        # On the host: a second CLIP may not fit beside the teacher.
        self._kept = {name: p.detach().to("cpu", copy=True) for name, p in trainer.parameters().items()}
        self._kept_row = self.rows[-1]
        if self.folder is not None:
            with replacing(self.folder / "best") as beside:
                beside.mkdir()
                save_models(beside, trainer.clip, trainer.projector, trained_denoiser(trainer))
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


def _read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a JSON file; none where there is no file."""
    content = read_record(path)
    rows = content if isinstance(content, list) else [] if content is None else [content]
    if not all(isinstance(row, dict) and isinstance(row.get("step"), int) for row in rows):
        raise WeightsError(f"{path} holds no evaluations; resume=False starts again")
    return [with_nan(row) for row in rows]
