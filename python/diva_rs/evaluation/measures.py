"""Named scores of a model: what callers give as metrics, measured without a trace on the model."""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from diva_rs.errors import ConfigError, shown
from diva_rs.evaluation.mode import evaluating

Metric = Callable[[nn.Module], Any]
_SCORES = ("average", "accuracy", "cosine")  # of the results of diva_rs.evaluation


def as_metrics(metrics: Any) -> dict[str, Metric]:
    """Name -> function of a model; a single function goes by its own name.

    Raises:
        ConfigError: it is neither a function nor a mapping of names to functions.

    >>> def zero_shot(clip):
    ...     return 63.5
    >>> list(as_metrics(zero_shot))
    ['zero_shot']
    """
    if callable(metrics):
        metrics = {getattr(metrics, "__name__", type(metrics).__name__).lower(): metrics}
    if not isinstance(metrics, Mapping) or not metrics:
        raise ConfigError(
            f"metrics is {shown(metrics)}: give a function of the model, or a mapping of names to such "
            "functions"
        )
    for name, metric in metrics.items():
        if not isinstance(name, str) or not callable(metric):
            raise ConfigError(f"metric {shown(name)} is {shown(metric)}: a function of the model is needed")
    return dict(metrics)


def measure(metrics: Mapping[str, Metric], clip: nn.Module) -> dict[str, float]:
    """Every metric of the model as it is now: name -> score.

    The model is in eval mode and no gradient is recorded meanwhile; afterwards its modes, its gradients and
    the global random generators (torch's on every device, NumPy's, random's) are as before. A metric gives a
    number, a result of `diva_rs.evaluation` (its average, accuracy or cosine counts), or a mapping of
    numbers, which are called "name/key".

    Raises:
        ConfigError: a metric gave something else; names it.

    >>> measure({"bias": lambda clip: {"mean": 0.5, "max": 2}}, clip)
    {'bias/mean': 0.5, 'bias/max': 2.0}
    """
    scores: dict[str, float] = {}
    with undisturbed(clip) as model:
        for name, metric in metrics.items():
            found = metric(model)
            parts = found if isinstance(found, Mapping) else {"": found}
            for key, value in parts.items():
                scores[f"{name}/{key}" if key else name] = _number(value, name)
    return scores


@contextmanager
def undisturbed(clip: nn.Module) -> Iterator[nn.Module]:
    """As `evaluation.mode.evaluating`; gradients and random generators come back as well."""
    gradients = [(parameter, parameter.grad) for parameter in clip.parameters()]
    python, numpy = random.getstate(), np.random.get_state()
    cuda: Any = torch.cuda
    devices = list(range(cuda.device_count())) if cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices), evaluating(clip) as model:
            yield model
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _number(value: Any, name: str) -> float:
    for attribute in _SCORES:
        if isinstance(getattr(value, attribute, None), (int, float)):
            value = getattr(value, attribute)
            break
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as err:
        raise ConfigError(
            f"metric {name} gave a {type(value).__name__}: a number, a mapping of numbers or a result of "
            "diva_rs.evaluation is needed"
        ) from err
