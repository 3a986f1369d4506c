"""Callbacks of `post_train`: what happens at the begin, the steps, the logs and the end of a run.

A plain function of (step, metrics) is a callback too: it is called at each log. An exception in a
callback ends the run.
"""

import json
import math
from collections.abc import Mapping
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any, cast

from diva_rs._base.files import as_path
from diva_rs._base.optional import require
from diva_rs.errors import ConfigError, DataError, a_type, shown

if TYPE_CHECKING:
    from diva_rs.run.result import PostTrainResult
    from diva_rs.step.trainer import Trainer

__all__ = ["Callback", "JsonLines", "TensorBoard", "WandB", "as_callback"]

_HOOKS = ("on_train_begin", "on_step", "on_log", "on_train_end")


class Callback:
    """Base of callbacks: each hook does nothing until it is overridden.

    >>> class Stop(Callback):
    ...     def on_log(self, step, metrics):
    ...         if metrics["loss"] > 10.0:
    ...             raise RuntimeError(f"diverged at step {step}")
    >>> Stop().on_log(10, {"loss": 0.3})
    """

    def on_train_begin(self, trainer: "Trainer") -> None:
        """Before the first step; ``trainer`` holds the recipe and the models."""

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """After each optimizer step, from 1; to read a metric that is on the device is to wait for it."""

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        """Every ``log_every`` steps and after the last; ``metrics`` are a row of the result's history."""

    def on_train_end(self, result: "PostTrainResult") -> None:
        """After the last step, also when Ctrl-C ended the run; not after an error."""


class TensorBoard(Callback):
    """Writes each log to TensorBoard files, as ``train/<metric>``, and the recipe as text.

    >>> import os, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> board = TensorBoard(folder)
    >>> board.on_log(10, {"loss": 0.3})
    >>> len(os.listdir(folder))
    1
    """

    def __init__(self, log_dir: str | PathLike[str]) -> None:
        require("tensorboard")  # torch.utils.tensorboard names a missing one less plainly
        self._log_dir = str(as_path(log_dir))

    @cached_property
    def _writer(self) -> Any:
        return require("torch.utils.tensorboard").SummaryWriter(self._log_dir)

    def on_train_begin(self, trainer: "Trainer") -> None:
        """Write the recipe."""
        text = trainer.recipe.describe()
        self._writer.add_text("recipe", "\n".join(f"    {line}" for line in text.splitlines()))

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        """Write one point per metric, on disk at once."""
        for name, value in metrics.items():
            self._writer.add_scalar(f"train/{name}", value, step)
        self._writer.flush()

    def on_train_end(self, result: "PostTrainResult") -> None:
        """Close the file."""
        self._writer.close()
        del self._writer


class WandB(Callback):
    """Logs to Weights & Biases as ``train/<metric>``, with the recipe as the run's configuration::

        post_train(clip, unet, loader, callbacks=[WandB("clip-sees-better", mode="offline")])

    ``init`` are more arguments of ``wandb.init``; its ``config`` is added to the recipe.
    """

    def __init__(self, project: str, **init: Any) -> None:
        self._wandb: Any = require("wandb")
        self._project, self._init = project, init

    def on_train_begin(self, trainer: "Trainer") -> None:
        """Start the run."""
        config = {**trainer.recipe.to_dict(), **self._init.get("config", {})}
        self._run = self._wandb.init(**{**self._init, "project": self._project, "config": config})

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        """Log one point per metric."""
        self._run.log({f"train/{name}": value for name, value in metrics.items()}, step=step)

    def on_train_end(self, result: "PostTrainResult") -> None:
        """Record the report and finish the run."""
        self._run.summary.update(result.report)
        self._run.finish()


class JsonLines(Callback):
    """Appends one JSON object per log to a file, line by line, so that a crash loses none of them.

    A value that is not finite becomes null. A last line that an earlier crash cut off is ended first.

    >>> import tempfile
    >>> from pathlib import Path
    >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
    >>> JsonLines(path).on_log(10, {"loss": 0.25})
    >>> path.read_text()
    '{"step": 10, "loss": 0.25}\\n'
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self._path = as_path(path)

    def on_train_begin(self, trainer: "Trainer") -> None:
        """Raise DataError before the first step if the file cannot be written."""
        self._append("")

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        """Append one line."""
        row = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._append(json.dumps({"step": step, **row}, allow_nan=False) + "\n")

    def _append(self, line: str) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "ab+") as file:
                if file.tell() > 0:
                    file.seek(-1, 2)
                    line = line if file.read(1) == b"\n" else "\n" + line
                file.write(line.encode())
        except OSError as err:
            raise DataError(f"{self._path} cannot be written: {err.strerror or err}") from err


def as_callback(callback: Any) -> Callback:
    """``callback`` itself when it has the hooks, or a function of (step, metrics) as a callback.

    >>> as_callback(lambda step, metrics: print(step, metrics["loss"])).on_log(10, {"loss": 0.25})
    10 0.25
    """
    has_hooks = all(callable(getattr(callback, hook, None)) for hook in _HOOKS)
    if isinstance(callback, type) or not (has_hooks or callable(callback)):
        what = "a diva_rs.callbacks.Callback, or a function of (step, metrics), is needed"
        raise ConfigError(f"callback {shown(callback)} is {a_type(callback)}: {what}")
    if has_hooks:
        return cast(Callback, callback)
    adapter = Callback()
    adapter.on_log = callback  # type: ignore[method-assign]
    return adapter
