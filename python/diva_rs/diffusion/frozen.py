"""Frozen modules: switching gradients off, fitting dtype and device, and moving tensors to where they are."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NoReturn

import torch
from torch import Tensor, nn

from diva_rs.errors import ConfigError, DeviceError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
_CONSUMED = "_diva_rs_consumed"


def freeze(module: nn.Module) -> nn.Module:
    """Eval mode and no gradients, in place: dropout is off, and no parameter gets a ``.grad``."""
    return module.eval().requires_grad_(False)


def home(module: nn.Module, name: str) -> tuple[torch.device, torch.dtype]:
    """The one device of a module's tensors, and the dtype of its first floating-point tensor."""
    if _CONSUMED in vars(module):
        _refuse(module)
    if any(hasattr(part, "_hf_hook") for part in module.modules()):
        raise ConfigError(
            f"{name} is offloaded by accelerate, which moves its weights away between forward and backward: "
            "load it without offloading, or call pipeline.remove_all_hooks()"
        )
    tensors = dict(_tensors(module))
    floating = [tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()]
    if not floating:
        raise ConfigError(f"{name} ({type(module).__name__}) has no floating-point weights")
    places: dict[torch.device, str] = {}
    for key, tensor in tensors.items():
        places.setdefault(tensor.device, key)
    if len(places) > 1:
        found = ", ".join(f"{key} on {device}" for device, key in places.items())
        hint = ": was it missing from the file that was loaded?" if torch.device("meta") in places else ""
        raise DeviceError(f"{name} lies on several devices: {found}{hint}")
    return next(iter(places)), floating[0]


def fitted(module: nn.Module, device: torch.device | None, dtype: torch.dtype | None) -> nn.Module:
    """The module itself where its tensors are already on ``device`` in ``dtype``, otherwise a converted copy.

    The caller's module is never converted. None leaves a property as it is.
    """

    def convert(tensor: Tensor) -> Tensor:
        return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

    fits = all(
        device in (None, tensor.device) and (dtype in (None, tensor.dtype) or not tensor.is_floating_point())
        for _, tensor in _tensors(module)
    )
    return module if fits else rebuilt(module, convert)


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


def emptied(module: nn.Module) -> None:
    """Drop the weights of a module that a copy stands in for: its use is an error from then on."""
    setattr(module.to_empty(device="meta"), _CONSUMED, True)
    module.register_forward_pre_hook(_refuse)
    module.register_state_dict_pre_hook(_refuse)  # type: ignore[no-untyped-call]


def _refuse(module: nn.Module, *_: object) -> NoReturn:
    raise ConfigError(
        f"this {type(module).__name__} is empty: Teacher(consume=True) has moved its weights into the "
        "teacher, whose .denoiser and .vae hold them in the dtype of the computation"
    )


def gib(module: nn.Module) -> str:
    """The memory that a module's tensors take.

    >>> gib(nn.Linear(2**14, 2**14))
    '1.0 GiB'
    """
    return f"{sum(tensor.nbytes for _, tensor in _tensors(module)) / 2**30:.1f} GiB"


def moved(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor on ``device`` in ``dtype``, differentiable, without waiting where that is safe."""
    if tensor.is_meta and device.type != "meta":
        raise DeviceError(
            f"a tensor {tuple(tensor.shape)} on the meta device has no values: give it on {device}"
        )
    # A copy to the host must be waited for: its consumer on the host would read it too early.
    return tensor.to(device=device, dtype=dtype, non_blocking=device.type != "cpu")


def no_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Switches a caller's autocast off: a frozen model computes in the dtype that it was fitted to."""
    known = torch.amp.is_autocast_available(device.type)  # not on every device, "meta" for one
    return torch.autocast(device.type if known else "cpu", enabled=False)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
