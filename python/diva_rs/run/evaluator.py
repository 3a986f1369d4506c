"""Evaluation during training: scores, the best weights, and bounds that end the run.

Training is not disturbed: the weights after a run are the same bits with and without.
"""

import math
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from diva_rs._base.checkpoint import load_weights
from diva_rs._base.files import check_replaceable, replacing, write_json
from diva_rs._base.settings import hint
from diva_rs.distributed import alone
from diva_rs.errors import ConfigError, WeightsError
from diva_rs.evaluation.measures import VALIDATION, measured
from diva_rs.run.evaluation import Evaluation
from diva_rs.run.folder import read_record, with_nan
from diva_rs.run.provenance import trained_denoiser
from diva_rs.run.result import save_models
from diva_rs.step.trainer import Trainer

_LOGGED = ("step", "stage", "grad_norm", "lr", "epoch", "samples", "samples_per_second", "skipped", "waiting")
_FACTS = ("name", "kind", "is_test_set")
# score -> its results: their facts, and the result as a dict
Results = dict[str, list[dict[str, Any]]]
_BEST_FILES = {"clip.safetensors", "projector.safetensors", "denoiser.safetensors", "low_rank.safetensors"}
_BEST_FILES |= {"scores.json", "evaluations.json"}


class _Kept(NamedTuple):
    """The best weights so far, on the host: a second CLIP may not fit beside the teacher."""

    row: dict[str, float]
    results: Results
    weights: dict[str, Tensor]


class Evaluator:
    """The evaluations of one run: their scores, and the weights that are kept.

    In the run's folder ``evaluations.json`` holds every score, ``evaluations-before.json`` and ``-after``
    hold the results that the first and the last scores are made of, and ``best`` the kept weights.
    """

    def __init__(self, evaluation: Evaluation, trainer: Trainer, folder: Path | None) -> None:
        self.evaluation, self.trainer, self.folder = evaluation, trainer, folder
        self.seconds = 0.0
        self.rows: list[dict[str, float]] = []
        self.results: dict[str, Results] = {}  # of "before" and "after"
        self._kept: _Kept | None = None
        if folder is None or not evaluation.evaluate:
            return
        check_replaceable(folder / "best", _BEST_FILES, "a run's best weights")
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
        """Measure before the first step, and check the scores that ``best`` and ``guard`` name."""
        best = self.evaluation.best
        if not self.evaluation.evaluate:
            return
        if not self.rows:
            scores = self.measure(self.trainer.steps_done)
            for name in (*(best[:1] if best else ()), *self.evaluation.guard):
                if name not in scores:
                    near = hint(name, scores) or f": measured are {', '.join(scores)}"
                    raise ConfigError(f"best and guard name scores, and {name!r} is not one{near}")
            taken = sorted(scores.keys() & {*_LOGGED, *self.trainer.step_modules.all_loss_names})
            if taken:
                raise ConfigError(f"a score is named {taken[0]!r}, which the log uses already: rename it")
            if self.stopped is not None:
                raise ConfigError(f"guard: {self.stopped}, before the first step: nothing was trained")
        if self._chosen_on_test and best and not self.evaluation.best_on_test:
            raise ConfigError(
                f"best={best[0]!r} goes by {self._chosen_on_test}, a test set, whose score is too good for "
                f"weights that it chose. {VALIDATION}, on the command line --pairs FOLDER. "
                "best_on_test=True allows it, and the report says so"
            )
        measured_first = self.results["before"].values()
        kinds = {entry["kind"] for entries in measured_first for entry in entries} - {"drift"}
        if kinds == {"detail"} and all(measured_first):
            text = "evaluate measures detail alone: retention is not measured. Add a score of what CLIP "
            text += "could before, such as zero_shot_folder of diva_rs.evaluation on a folder of classes"
            warnings.warn(text, stacklevel=2)

    def due(self, step: int) -> bool:
        """Whether this step is evaluated."""
        every, last = self.evaluation.eval_every, self.trainer.recipe.steps
        return bool(self.evaluation.evaluate) and (step == last or (every is not None and step % every == 0))

    def measure(self, step: int) -> dict[str, float]:
        """Measure the model, write the scores, and keep the weights if they are the best."""
        started = time.perf_counter()
        with alone():
            found = measured(self.evaluation.evaluate, self.trainer.clip)
        scores = {name: value for name, (value, _) in found.items()}
        results = {name: [_entry(result) for result in made] for name, (_, made) in found.items()}
        self._keep_results("after" if self.rows else "before", results)
        self.rows.append({"step": step, **scores})
        if self._is_best():
            self._keep(results)
        if self.folder is not None:
            write_json(self.folder / "evaluations.json", self.rows)
        self.seconds += time.perf_counter() - started
        return scores

    def best_score(self, step: int) -> float | None:
        """The score named by ``best``, where this step's weights are the best so far."""
        best, kept = self.evaluation.best, self._kept
        return None if best is None or kept is None or kept.row["step"] != step else kept.row.get(best[0])

    def restore(self) -> None:
        """Put the kept weights back, where the guard has ended the run."""
        if self._kept is not None:
            self.trainer.step_modules.write(self._kept.weights)
            self._keep_results("after", self._kept.results)

    def report(self) -> dict[str, Any]:
        """The scores before and after, what they are scores of, the best, and why the run was stopped."""
        if not self.rows:
            return {}
        found: dict[str, Any] = {"before": self.rows[0], "after": self.rows[-1]}
        found["seconds"], found["of"] = round(self.seconds, 3), {}
        for name, entries in self.results.get("before", {}).items():
            found["of"][name] = [{key: entry[key] for key in _FACTS} for entry in entries]
        if self._chosen_on_test:
            found["chosen_on_test"] = self._chosen_on_test
        why = self.stopped
        if self._kept is not None:
            found["best"] = self._kept.row
            if why is not None:
                why += f"; the weights are those of step {self._kept.row['step']}"
        return {"evaluation": found, "stopped": why}

    @property
    def _chosen_on_test(self) -> str:
        """The test sets by which ``best`` chooses, with commas between them; empty for none."""
        best, known = self.evaluation.best, self.results.get("before", {})
        entries = known.get(best[0], []) if best else []
        return ", ".join(dict.fromkeys(entry["name"] for entry in entries if entry["is_test_set"]))

    def _keep_results(self, moment: str, results: Results) -> None:
        self.results[moment] = results
        if self.folder is not None:
            write_json(self.folder / f"evaluations-{moment}.json", results)

    def _is_best(self) -> bool:
        best = self.evaluation.best
        if (best is None and not self.evaluation.guard) or self.stopped is not None:
            return False
        if best is None or self._kept is None:
            return True
        name, direction = best
        scores = [row.get(name, math.nan) for row in (self.rows[-1], self._kept.row)]
        new, old = (-score if direction == "min" else score for score in scores)
        return new > old or (math.isnan(old) and not math.isnan(new))

    def _keep(self, results: Results) -> None:
        trainer, row = self.trainer, self.rows[-1]
        weights = {name: p.detach().to("cpu", copy=True) for name, p in trainer.parameters().items()}
        self._kept = _Kept(row, results, weights)
        if self.folder is not None:
            with replacing(self.folder / "best") as beside:
                beside.mkdir()
                models = (trainer.clip, trainer.projector, trained_denoiser(trainer))
                save_models(beside, *models, trainer.step_modules.low_rank)
                write_json(beside / "scores.json", row)
                write_json(beside / "evaluations.json", results)

    def _read_back(self, folder: Path) -> None:
        """Read what earlier starts of this run measured, up to the step where it resumes."""
        done = self.trainer.steps_done
        self.rows = [row for row in _read_rows(folder / "evaluations.json") if row["step"] <= done]
        for moment in ("before", "after") if self.rows else ():
            self.results[moment] = read_record(folder / f"evaluations-{moment}.json", dict) or {}
        best = folder / "best"
        kept = _read_rows(best / "scores.json")
        if not kept or kept[0]["step"] not in [row["step"] for row in self.rows]:
            return  # of a step that comes again
        found = load_weights(best / "clip.safetensors")
        for part in ("projector", *(["denoiser"] if trained_denoiser(self.trainer) else [])):
            weights = load_weights(best / f"{part}.safetensors")
            found |= {f"{part}.{name}": value for name, value in weights.items()}
        if self.trainer.step_modules.low_rank is not None:
            found |= load_weights(best / "low_rank.safetensors")
        try:
            weights = {name: found[name] for name in self.trainer.parameters()}
        except KeyError as err:
            raise WeightsError(f"{best} holds no {err}: resume=False starts again") from err
        self._kept = _Kept(kept[0], read_record(best / "evaluations.json", dict) or {}, weights)


def _entry(result: Any) -> dict[str, Any]:
    return {**{name: getattr(result, name) for name in _FACTS}, "result": result.to_dict()}


def _read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a JSON file; none where there is no file."""
    content = read_record(path)
    rows = content if isinstance(content, list) else [] if content is None else [content]
    if not all(isinstance(row, dict) and isinstance(row.get("step"), int) for row in rows):
        raise WeightsError(f"{path} holds no evaluations; resume=False starts again")
    return [with_nan(row) for row in rows]
