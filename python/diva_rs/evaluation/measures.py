"""A model as it is scored: eval mode, float32, no gradients, and nothing of the caller's changed."""

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn

from diva_rs.clip import unwrap
from diva_rs.diffusion.frozen import no_autocast
from diva_rs.errors import ConfigError, a_type, shown
from diva_rs.evaluation.result import results_made

Metric = Callable[[nn.Module], Any]
VALIDATION = (
    "Choose by another score, such as the validation half of its pairs: evaluation.pairs(..., "
    "half='validation')"
)
_SCORES = ("per_cent", "accuracy", "cosine")  # of the results of diva_rs.evaluation


def as_metrics(metrics: Any) -> dict[str, Metric]:
    """Name -> function of a model; a single function goes by its own name."""
    if callable(metrics):
        metrics = {getattr(metrics, "__name__", type(metrics).__name__).lower(): metrics}
    if not isinstance(metrics, Mapping) or not all(map(callable, metrics.values())):
        functions = "a function of the model, or a mapping of names to such functions"
        raise ConfigError(f"metrics is {shown(metrics)}: give {functions}")
    return dict(metrics)


def measured(metrics: Mapping[str, Metric], clip: nn.Module) -> dict[str, tuple[float, list[Any]]]:
    """Every metric of the model as it is now: name -> score, and the results with a kind that it is made of.

    A metric returns a number, which may be one of a result's, a result of `diva_rs.evaluation` (its share or
    cosine counts), or a mapping of numbers, which are called "name/key". Modes, gradients and the global
    random generators are as before afterwards.
    """
    scores: dict[str, tuple[float, list[Any]]] = {}
    with undisturbed(clip) as model:
        for name, metric in metrics.items():
            with results_made() as made:
                found = metric(model)
            tuples = (part for result in made for part in vars(result).values() if isinstance(part, tuple))
            inside = {id(part) for part in chain(*tuples)}
            results = [result for result in made if hasattr(result, "kind") and id(result) not in inside]
            parts = found if isinstance(found, Mapping) else {"": found}
            for key, value in parts.items():
                scores[f"{name}/{key}" if key else name] = _number(value, name), results
    return scores


def names_of_test_sets(results: Iterable[Any]) -> str:
    """The names of the test sets among the results, with commas between them; empty for none."""
    return ", ".join(dict.fromkeys(result.name for result in results if result.is_test_set))


def _number(value: Any, name: str) -> float:
    scores = (getattr(value, attribute, None) for attribute in _SCORES)
    try:
        return float(next((score for score in scores if isinstance(score, (int, float))), value))
    except (TypeError, ValueError, RuntimeError) as err:
        wanted = "a number, a mapping of numbers or a result of diva_rs.evaluation"
        raise ConfigError(f"metric {name} gave {a_type(value)}: {wanted} is needed") from err


@contextmanager
def undisturbed(clip: nn.Module) -> Iterator[nn.Module]:
    """As `evaluating`; gradients and random generators are restored as well."""
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


@contextmanager
def evaluating(clip: Any) -> Iterator[Any]:
    """The model inside its wrappers, in eval mode, under no_grad, without autocast or TF32.

    Afterwards the mode of every module and torch's settings are restored. Weights in half precision are
    scored as a float32 copy; the caller's do not change. An object that is not a module is used as it is.
    """
    model = clip if hasattr(clip, "encode_image") and not isinstance(clip, nn.Module) else unwrap(clip)
    modes = [(part, part.training) for part in model.modules()] if isinstance(model, nn.Module) else []
    try:
        with torch.no_grad(), no_autocast(device_of(model)), _exact_arithmetic():
            if isinstance(model, nn.Module):
                half = any(value.dtype in (torch.float16, torch.bfloat16) for value in model.parameters())
                model = copy.deepcopy(model).float().eval() if half else model.eval()
            yield model
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _exact_arithmetic() -> Iterator[None]:
    """float32 products in float32, and the same cuDNN algorithms in every run."""
    backends: Any = torch.backends
    cuda, cudnn, mkldnn = backends.cuda, backends.cudnn, backends.mkldnn
    # These names are readable whichever of torch's two interfaces the caller has used.
    precisions = [cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv]
    wanted: list[tuple[Any, str, Any]] = [(place, "fp32_precision", "ieee") for place in precisions]
    wanted += [(cudnn, "benchmark", False), (cudnn, "deterministic", True)]
    before = [(place, name, getattr(place, name)) for place, name, _ in wanted]
    try:
        for place, name, value in wanted:
            setattr(place, name, value)
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


def device_of(model: Any) -> torch.device:
    """Where the model's parameters are; the CPU for one without any."""
    first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return torch.device("cpu") if first is None else first.device
