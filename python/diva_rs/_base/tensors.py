"""Checks of tensors that are wrong without an error of their own: odd layouts, no values, no device."""

from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from diva_rs.errors import DeviceError, ShapeError, shown

_MOST = 1 << 36  # elements: no machine holds a tensor of more


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


def ordinary(name: str, value: Any, values: bool = False) -> Tensor:
    """A dense tensor that autograd can use; an inference tensor is copied.

    With ``values`` a tensor on the meta device raises too. Raises ShapeError naming the argument.
    """
    if not is_dense(value):
        raise ShapeError(f"{name}={described(value)}: a dense tensor is needed")
    if values and value.is_meta:
        raise ShapeError(f"{name}={described(value)}: a tensor on the meta device holds no values")
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
