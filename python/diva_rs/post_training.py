"""post_train: the main job in one call."""

import dataclasses
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from diva_rs.callbacks import Callback, JsonLines, as_callback
from diva_rs.checkpoint import check_place, make_folder, save_state, write_json, write_text
from diva_rs.data.batches import Batch
from diva_rs.errors import ConfigError, DataError
from diva_rs.pieces import as_recipe
from diva_rs.provenance import describe_data, environment
from diva_rs.recipe import Recipe
from diva_rs.recipes.kinds import hint
from diva_rs.result import PostTrainResult
from diva_rs.trainer import Trainer

_log = logging.getLogger("diva_rs")


def post_train(
    clip: nn.Module,
    unet: Any,
    loader: Iterable[Any],
    recipe: Recipe | str | None = None,
    *,
    output_dir: str | Path | None = None,
    callbacks: Iterable[Callback | Callable[[int, dict[str, float]], Any]] = (),
    progress: bool = True,
    **fields: Any,
) -> PostTrainResult:
    """Post-train the vision tower of ``clip`` with the generative feedback of a frozen diffusion model.

    DIVA (arXiv 2407.20171): the teacher denoises each image under a condition made of CLIP's own visual
    tokens, and the denoising error trains CLIP. Only images are needed.

    Args:
        clip: an open_clip, transformers or OpenAI CLIP or SigLIP; changed in place, and afterwards still an
            ordinary model of its library.
        unet: a diffusers UNet2DConditionModel or DiTTransformer2DModel, a pipeline, a diffusers folder, or a
            `Teacher`.
        loader: any iterable of image batches: a tensor (B, 3, H, W), ``(images, ...)``, or a dict with
            ``images`` or ``pixel_values``, and optionally ``latents`` and ``ids``. ``recipe.pixels`` declares
            the range of the images.
        recipe: a `Recipe`, the name of a preset, or None for the defaults.
        output_dir: folder for the log, the recipe, the checkpoint and the trained weights, in the place of
            those of an earlier run; None writes nothing.
        callbacks: `Callback` objects, or functions of (step, metrics) that are called at each log.
        progress: whether to show a progress bar.
        fields: recipe fields that override the recipe's, e.g. ``steps=200, lr=1e-5``. Without ``steps`` the
            run is one pass over the loader.

    Returns:
        A `PostTrainResult`. Ctrl-C ends the run cleanly: the result so far comes back with ``interrupted``
        set, and with an ``output_dir`` the checkpoint is written.

    Raises:
        ConfigError, DataError, ShapeError, DeviceError: the mistake, where it is, and what to do. No gradient
            is left then, and with an ``output_dir`` the steps that were done are in its checkpoint.

    >>> loader = [torch.rand(4, 3, 32, 32) for _ in range(3)]
    >>> result = post_train(clip, teacher, loader, progress=False, log_every=1, lr=1e-3)
    >>> [row["step"] for row in result.history]
    [1, 2, 3]
    """
    _check_fields(fields)
    recipe = as_recipe(recipe).replace(**fields)
    _check_loader(loader)
    one_pass = recipe.steps is None
    if one_pass:
        recipe = recipe.replace(steps=_steps_of_one_pass(loader, recipe))
    run = _Run(Trainer(clip, unet, recipe), loader, output_dir, callbacks, progress)
    return run.go(one_pass)


class _Run:
    """One run of the loop: batches in, steps, logs and files out."""

    def __init__(
        self,
        trainer: Trainer,
        loader: Iterable[Any],
        output_dir: str | Path | None,
        callbacks: Iterable[Any],
        progress: bool,
    ) -> None:
        self.trainer = trainer
        self.recipe = trainer.recipe
        self.loader = loader
        self.folder = None if output_dir is None else make_folder(output_dir)
        if not isinstance(callbacks, Iterable):
            raise ConfigError(f"callbacks is {callbacks!r}: give a list of them, [{callbacks!r}]")
        self.callbacks = [as_callback(callback) for callback in callbacks]
        self.history: list[dict[str, float]] = []
        self.samples = 0
        self.progress = progress
        self._since = (time.perf_counter(), 0)  # of the last log: seconds, samples
        self._warned = False
        if self.folder is not None:
            check_place(self.folder / "checkpoint")  # not at the end of the run
            write_text(self.folder / "recipe.txt", self.recipe.describe() + "\n")
            write_json(self.folder / "recipe.json", self.recipe.to_dict())
            write_text(self.folder / "metrics.jsonl", "")  # logs are appended: two runs in one file mislead
            for name in ("history.json", "report.json"):  # an earlier run's, beside this one's log
                (self.folder / name).unlink(missing_ok=True)
            self.callbacks.append(JsonLines(self.folder / "metrics.jsonl"))

    def go(self, one_pass: bool) -> PostTrainResult:
        started, interrupted = time.perf_counter(), False
        for callback in self.callbacks:
            callback.on_train_begin(self.trainer)
        with tqdm(total=self.recipe.steps, desc="post-train", unit="step", disable=not self.progress) as bar:
            try:
                try:
                    for step in self._steps(one_pass):
                        self._after(step, bar)
                except KeyboardInterrupt:
                    interrupted = True
                if not self.history or self.history[-1]["step"] != self.trainer.steps_done:
                    self._log(self.trainer.steps_done, bar)
            except BaseException:
                # Whatever went wrong, the steps that were done are not lost.
                self.trainer.discard()
                if self.folder is not None and self.trainer.steps_done:
                    save_state(self.folder / "checkpoint", self.trainer.state_dict())
                raise
        self.trainer.discard()  # the caller's model keeps no gradient of the last step
        result = self._result(time.perf_counter() - started, interrupted)
        if self.folder is not None:
            save_state(self.folder / "checkpoint", self.trainer.state_dict())
            result.save(self.folder)
        if interrupted:
            kept = "" if self.folder is None else f"; checkpoint in {self.folder / 'checkpoint'}"
            _log.warning("interrupted after %d steps%s", self.trainer.steps_done, kept)
        for callback in self.callbacks:
            callback.on_train_end(result)
        return result

    def _steps(self, one_pass: bool) -> Iterator[int]:
        """Feed batches until the steps, or one pass, are done; yields the number of each step."""
        trainer, last = self.trainer, self.recipe.steps
        for epoch in range(trainer.epoch, 1 << 62):
            trainer.set_epoch(epoch)
            _set_epoch(self.loader, epoch)
            batches = 0
            for batch in self.loader:
                batches += 1
                before = trainer.pending
                trainer.accumulate(batch)
                self.samples += trainer.pending - before
                if trainer.pending >= (self.recipe.batch or 1):
                    self._check_size(trainer.pending)
                    trainer.apply()
                    yield trainer.steps_done
                    if last is not None and trainer.steps_done >= last:
                        return
            if batches == 0:
                if epoch == 0:
                    raise DataError("the loader gave no batch at all")
                raise DataError(
                    f"the loader gave no batch in pass {epoch + 1}, after {trainer.steps_done} of {last} "
                    "steps: it can be iterated only once; give a DataLoader or a list, or fewer steps"
                )
            if one_pass:
                if trainer.pending:  # the last, smaller batch of the pass
                    trainer.apply()
                    yield trainer.steps_done
                return

    def _after(self, step: int, bar: Any) -> None:
        bar.update()
        for callback in self.callbacks:
            callback.on_step(step, self.trainer.metrics)
        if step % self.recipe.log_every == 0 or step == self.recipe.steps:
            self._log(step, bar)

    def _check_size(self, samples: int) -> None:
        if self.recipe.batch is not None and samples > self.recipe.batch and not self._warned:
            self._warned = True
            _log.warning(
                "a step takes %d samples, not batch=%d: the loader's batches do not add up to it",
                samples,
                self.recipe.batch,
            )

    def _log(self, step: int, bar: Any) -> None:
        """Read the statistics from the device, once per `log_every` steps."""
        if step == 0:
            return
        self.trainer.pieces.guard.report()
        now = time.perf_counter()
        then, samples = self._since
        metrics = {name: float(value) for name, value in self.trainer.metrics.items()}
        metrics["samples_per_second"] = (self.samples - samples) / max(now - then, 1e-9)
        self._since = (now, self.samples)
        self.history.append({"step": step, **metrics})
        bar.set_postfix(loss=f"{metrics['loss']:.4f}", lr=f"{metrics['lr']:.1e}")
        for callback in self.callbacks:
            callback.on_log(step, metrics)

    def _result(self, seconds: float, interrupted: bool) -> PostTrainResult:
        trainer = self.trainer
        report = {
            "clip": f"{type(trainer.clip).__name__} ({trainer.pieces.tower.name})",
            "teacher": trainer.teacher.describe(),
            "steps": trainer.steps_done,
            "samples": self.samples,
            "seconds": round(seconds, 3),
            "interrupted": interrupted,
            "data": describe_data(self.loader),
            "trained_parameters": {
                "clip": sum(value.numel() for value in trainer.pieces.parameters.values()),
                "projector": sum(value.numel() for value in trainer.projector.parameters()),
            },
            "backend": trainer.pieces.backend,
            **environment(trainer.pieces.device),
        }
        return PostTrainResult(self.history, report, trainer.projector, self.recipe, trainer.clip)


def _check_fields(fields: dict[str, Any]) -> None:
    """A slip in one of post_train's own arguments arrives among the recipe's fields."""
    known = {field.name for field in dataclasses.fields(Recipe)}
    for name in fields.keys() - known:
        near = hint(name, [*known, "recipe", "output_dir", "callbacks", "progress"])
        raise ConfigError(f"post_train has no argument {name!r}, nor has a recipe such a field{near}")


def _check_loader(loader: Any) -> None:
    if isinstance(loader, (torch.Tensor, np.ndarray)):
        raise DataError(
            f"loader is one array {tuple(loader.shape)}: give an iterable of batches, e.g. [images]"
        )
    if isinstance(loader, (str, os.PathLike)):
        raise ConfigError(
            f"loader is a path: give diva_rs.data.folder_loader({str(loader)!r}), or another loader"
        )
    if isinstance(loader, (Mapping, Batch)) or not isinstance(loader, Iterable):
        what = f"loader is a {type(loader).__name__}"
        raise ConfigError(
            f"{what}: give an iterable of image batches, e.g. a DataLoader or a list of batches"
        )


def _steps_of_one_pass(loader: Any, recipe: Recipe) -> int | None:
    """Optimizer steps of one pass where the loader tells its length; None: until it ends."""
    try:
        batches = len(loader)
    except (TypeError, NotImplementedError):
        return None
    if batches == 0:
        raise DataError("the loader is empty: it has length 0")
    if recipe.batch is None:
        return int(batches)
    samples: int | None = getattr(loader, "batch_size", None)
    if samples is None:
        return None
    seen: int = batches * samples
    dataset: Any = getattr(loader, "dataset", None)
    if hasattr(dataset, "__len__"):
        seen = min(seen, len(dataset))  # the last batch may be smaller
    accumulated = (
        math.ceil(recipe.batch / samples) * samples
    )  # a step ends with the loader batch that fills it
    return math.ceil(seen / accumulated)


def _set_epoch(loader: Any, epoch: int) -> None:
    """Tell whatever shuffles or augments by epoch that a new pass begins."""
    for part in (loader, *(getattr(loader, name, None) for name in ("sampler", "batch_sampler", "dataset"))):
        hook = getattr(part, "set_epoch", None)
        if callable(hook):
            hook(epoch)
