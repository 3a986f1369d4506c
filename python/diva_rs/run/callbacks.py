"""Callbacks of `post_train`: what happens beside the training, at its begin, steps, logs and end.

A plain function of (step, metrics) is a callback too: it is called at each log. An exception in a callback
ends the run; nothing is swallowed.
"""

import importlib
import json
import math
from collections.abc import Callable, Mapping
from os import PathLike
from types import ModuleType
from typing import TYPE_CHECKING, Any

from diva_rs._base.arguments import as_path, described, takes
from diva_rs._base.settings import integer
from diva_rs.errors import ConfigError, DataError, DependencyError, shown

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
        """After each optimizer step (numbered from 1).

        ``metrics`` may hold tensors that are still on the device: to read one is to wait for it.
        """

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        """Every ``log_every`` steps and after the last.

        ``metrics`` are floats: loss, lr, grad_norm, samples_per_second, waiting, epoch and others.
        """

    def on_train_end(self, result: "PostTrainResult") -> None:
        """After the last step, also when Ctrl-C ended the run; not after an error."""


class TensorBoard(Callback):
    """Writes each log to TensorBoard files in ``log_dir``, as ``train/<metric>``, and the recipe as text.

    Raises:
        DependencyError: tensorboard is not installed.

    >>> import tempfile
    >>> from pathlib import Path
    >>> folder = tempfile.mkdtemp()
    >>> board = TensorBoard(folder)
    >>> board.on_log(10, {"loss": 0.3})
    >>> len(list(Path(folder).iterdir()))
    1
    """

    def __init__(self, log_dir: str | PathLike[str]) -> None:
        # Asked for by its own name first: torch.utils.tensorboard reports a missing one less plainly.
        _installed("tensorboard")
        self._log_dir = str(as_path(log_dir, "log_dir"))
        self._open: Any = None

    @property
    def _writer(self) -> Any:
        if self._open is None:
            tensorboard = importlib.import_module("torch.utils.tensorboard")
            self._open = tensorboard.SummaryWriter(self._log_dir)
        return self._open

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
        self._open = None


class WandB(Callback):
    """Logs to Weights & Biases as ``train/<metric>``, with the recipe as the run's configuration::

        post_train(clip, unet, loader, callbacks=[WandB("clip-sees-better", mode="offline")])

    Args:
        project: the project's name.
        init: more arguments of ``wandb.init``, e.g. ``mode="offline"``; ``config`` is added to the recipe.

    Raises:
        DependencyError: wandb is not installed.
    """

    def __init__(self, project: str, **init: Any) -> None:
        self._wandb = _installed("wandb")
        self._project = project
        self._init = init
        self._run: Any = None

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
    """Appends one JSON object per log to a file, flushed line by line, so that a crash loses none of them.

    A value that is not finite becomes null (JSON has no NaN). A last line that an earlier crash cut short is
    ended first, so that it spoils itself alone.

    Raises:
        DataError: the file cannot be written; names it.

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
        """Fail before the first step, not at the first log, when the file cannot be written."""
        self._append("")

    @takes(step=integer(0, (1 << 63) - 1))
    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        """Append one line."""
        if not isinstance(metrics, Mapping):
            raise ConfigError(f"metrics={described(metrics)}: a mapping of names to numbers is needed")
        row = {str(name): _number(name, value) for name, value in metrics.items()}
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


def _number(name: Any, value: Any) -> float | None:
    """A number as JSON has it: None where it is not finite."""
    try:
        return value if math.isfinite(value) and json.dumps(value) else None
    except (TypeError, ValueError, RuntimeError, OverflowError) as err:
        raise ConfigError(f"metrics[{shown(name)}]={described(value)}: a number is needed") from err


class _Function(Callback):
    """A plain function, called at each log."""

    def __init__(self, function: Callable[[int, dict[str, float]], Any]) -> None:
        self._function = function

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        self._function(step, metrics)


def as_callback(callback: Any) -> Callback:
    """``callback`` itself when it has the hooks, or a function of (step, metrics) as a callback.

    Raises:
        ConfigError: it is neither, or a class where an object is needed.

    >>> as_callback(lambda step, metrics: print(step, metrics["loss"])).on_log(10, {"loss": 0.25})
    10 0.25
    """
    if isinstance(callback, type):
        raise ConfigError(f"callback {callback.__name__} is a class: make an object of it first")
    if all(callable(getattr(callback, hook, None)) for hook in _HOOKS):
        hooks: Callback = callback
        return hooks
    if callable(callback):
        return _Function(callback)
    raise ConfigError(
        f"callback {shown(callback)} is neither a diva_rs.run.callbacks.Callback nor a function of "
        "(step, metrics)"
    )


def _installed(module: str) -> ModuleType:
    """Import an optional library whose pip name is its own."""
    try:
        return importlib.import_module(module)
    except ImportError as err:
        if err.name is not None and err.name.split(".")[0] != module:
            raise  # it is there but broken: not to be reported as missing
        raise DependencyError(f"{module} is needed here and not installed: pip install {module}") from err
