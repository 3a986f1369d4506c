"""Checks of tensors that are wrong without an error of their own: odd layouts, no values, no device."""

import hashlib
from collections.abc import Iterable
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from diva_rs.errors import DeviceError, ShapeError, shown

_MOST = 1 << 36  # elements: no machine holds a tensor of more
_SAMPLED = 64  # values of each tensor that a fingerprint looks at


def is_dense(value: Any) -> TypeGuard[Tensor]:
    """Whether a value is an ordinary tensor: strided, not lazy, nested, sparse or quantized."""
    return (
        isinstance(value, Tensor)
        and not torch.nn.parameter.is_lazy(value)
        and not value.is_nested
        and value.layout == torch.strided
        and not value.is_quantized
        and value.numel() <= _MOST
    )


def ordinary(name: str, value: Any) -> Tensor:
    """A dense tensor that autograd can use, an inference tensor copied; ShapeError for any other value."""
    if not is_dense(value):
        raise ShapeError(f"{name}={described(value)}: a dense tensor is needed")
    return value.clone() if value.is_inference() and not torch.is_inference_mode_enabled() else value


def described(value: Any) -> str:
    """A value for an error message: dtype and shape of a tensor or array, otherwise its start."""
    if not isinstance(value, (Tensor, np.ndarray)):
        return shown(value)
    try:
        shape = f" {tuple(value.shape)}"
    except (RuntimeError, ValueError):  # nested tensors and lazy parameters have no shape
        shape = ", without a shape"
    layout = value.layout if isinstance(value, Tensor) else torch.strided
    return f"<{value.dtype}{shape}{'' if layout == torch.strided else f' in layout {layout}'}>"


def available_device(device: str | int | torch.device) -> torch.device:
    """The device as tensors on it report it: "cuda" becomes "cuda:0". Raises DeviceError if there is none."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError, OverflowError, TypeError) as err:
        reason = str(err).splitlines()[0][:200]
        raise DeviceError(f"device={shown(device)} is not available: {reason}") from err


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of the names, the shapes and some values of each tensor; copies to the host once."""
    digest, values = hashlib.sha256(), []
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().reshape(-1)
        values.append(flat[:: max(1, len(flat) // _SAMPLED)].to(torch.float32))
    if values and not any(value.is_meta for value in values):
        digest.update(torch.cat([value.to(values[0].device) for value in values]).cpu().numpy().tobytes())
    return digest.hexdigest()[:32]
