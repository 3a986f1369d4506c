"""Frozen modules: switching gradients off, fitting dtype and device, and moving tensors to where they are."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from diva_rs.errors import ConfigError, DeviceError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


def freeze(module: nn.Module) -> nn.Module:
    """Eval mode and no gradients, in place: dropout is off, and no parameter gets a ``.grad``."""
    return module.eval().requires_grad_(False)


def home(module: nn.Module, name: str) -> tuple[torch.device, torch.dtype]:
    """The one device of a module's tensors, and the dtype of its first floating-point tensor.

    Raises:
        ConfigError: the module has no floating-point tensor, or is offloaded by accelerate.
        DeviceError: its tensors lie on several devices (diffusers leaves missing weights on ``meta``).
    """
    if any(hasattr(part, "_hf_hook") for part in module.modules()):
        raise ConfigError(
            f"{name} is offloaded by accelerate, which moves its weights away between forward and backward: "
            "load it without offloading, or call pipeline.remove_all_hooks()"
        )
    dtype, device, first = None, None, ""
    for key, tensor in _tensors(module):
        if device is None:
            device, first = tensor.device, key
        elif tensor.device != device:
            hint = (
                ": was it missing from the file that was loaded?"
                if "meta" in (tensor.device.type, device.type)
                else ""
            )
            raise DeviceError(
                f"{name} lies on several devices: {first} on {device}, {key} on {tensor.device}{hint}"
            )
        if dtype is None and tensor.is_floating_point():
            dtype = tensor.dtype
    if device is None or dtype is None:
        raise ConfigError(f"{name} ({type(module).__name__}) has no floating-point weights")
    return device, dtype


def fitted(module: nn.Module, device: torch.device | None, dtype: torch.dtype | None) -> nn.Module:
    """The module itself where its tensors are already on ``device`` in ``dtype``, otherwise a converted copy.

    The caller's module is never converted, so a copy costs its size in the new dtype on top. None leaves a
    property as it is.
    """

    def fits(tensor: Tensor) -> bool:
        there = device is None or tensor.device == device
        return there and (dtype is None or tensor.dtype == dtype or not tensor.is_floating_point())

    def convert(tensor: Tensor) -> Tensor:
        return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

    if all(fits(tensor) for _, tensor in _tensors(module)):
        return module
    return rebuilt(module, convert)


def rebuilt(module: nn.Module, convert: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of the module's structure over converted tensors; ``lambda tensor: tensor`` shares every weight.

    Tensors are converted one by one: there is never a second copy in the old dtype.
    """
    memo: dict[int, object] = {}
    with torch.no_grad():
        for _, tensor in _tensors(module):
            converted = convert(tensor)
            if isinstance(tensor, nn.Parameter) and not isinstance(converted, nn.Parameter):
                converted = nn.Parameter(converted, requires_grad=False)
            memo[id(tensor)] = converted
        return copy.deepcopy(module, memo)


def moved(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor on ``device`` in ``dtype``, differentiable, without waiting where that is safe."""
    if tensor.is_meta and device.type != "meta":
        raise DeviceError(
            f"a tensor {tuple(tensor.shape)} is on the meta device, which holds no "
            f"values: give it on {device}"
        )
    # A copy to the host must be waited for: its consumer on the host would read it too early.
    return tensor.to(device=device, dtype=dtype, non_blocking=device.type != "cpu")


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Matrix products in ``dtype``, over weights in float32."""
    return torch.autocast(device.type, dtype=dtype)


def no_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Switches a caller's autocast off: a frozen model computes in the dtype that it was fitted to."""
    known = torch.amp.is_autocast_available(device.type)  # not on every device, "meta" for one
    return torch.autocast(device.type if known else "cpu", enabled=False)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
