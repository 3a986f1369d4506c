"""A model as it is scored: eval mode, float32, no gradients, one result whatever ran before."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from diva_rs.clip import unwrap
from diva_rs.errors import ConfigError


@contextmanager
def evaluating(clip: Any) -> Iterator[Any]:
    """The model inside its wrappers, in eval mode, under no_grad, without autocast or TF32.

    Afterwards every module has the mode that it had and torch the settings that it had. Weights in half
    precision are scored as a float32 copy; the caller's stay as they are. An object that is no module but
    has ``encode_image`` and ``encode_text`` is taken as it is.

    Raises:
        ConfigError: ``clip`` is no model.

    >>> _ = clip.train()
    >>> with evaluating(clip) as model:
    ...     model.training, torch.is_grad_enabled()
    (False, False)
    >>> clip.training
    True
    """
    if isinstance(clip, (tuple, list)):
        raise ConfigError(
            f"clip is a {type(clip).__name__} of {len(clip)}, expected the model alone: "
            "open_clip.create_model_and_transforms and clip.load return the model first"
        )
    if not isinstance(clip, nn.Module) and not (
        hasattr(clip, "encode_image") and hasattr(clip, "encode_text")
    ):
        raise ConfigError(f"clip is a {type(clip).__name__}, expected a loaded CLIP model")
    model = unwrap(clip) if isinstance(clip, nn.Module) else clip
    modes = [(part, part.training) for part in model.modules()] if isinstance(model, nn.Module) else []
    try:
        with torch.no_grad(), torch.autocast(device_of(model).type, enabled=False), _exact_arithmetic():
            yield _ready(model) if isinstance(model, nn.Module) else model
    finally:
        for module, training in modes:
            module.training = training


def _ready(model: nn.Module) -> nn.Module:
    half = any(value.dtype in (torch.float16, torch.bfloat16) for value in model.parameters())
    return copy.deepcopy(model).float().eval() if half else model.eval()


@contextmanager
def _exact_arithmetic() -> Iterator[None]:
    """float32 products in float32, and the same cuDNN algorithms in every run."""
    backends: Any = torch.backends
    # By these names, which can be read whichever of torch's two interfaces the caller has used.
    precisions = [
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
    ]
    wanted: list[tuple[Any, str, Any]] = [(place, "fp32_precision", "ieee") for place in precisions]
    wanted += [(backends.cudnn, "benchmark", False), (backends.cudnn, "deterministic", True)]
    before = [(place, name, getattr(place, name)) for place, name, _ in wanted]
    try:
        for place, name, value in wanted:
            setattr(place, name, value)
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


def device_of(model: Any) -> torch.device:
    """Where the model's parameters are; the CPU for one without any.

    >>> device_of(clip)
    device(type='cpu')
    """
    first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return torch.device("cpu") if first is None else first.device
