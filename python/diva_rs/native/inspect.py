"""Whether a module computes what its weights say and nothing else.

A native network shares a module's weights and not its code. Whatever changes the result without being a
weight (a hook, a replaced layer, a subclass, dropout) must be found here, or the network would silently
compute something else.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs.clip.tower import dropped_patches, stochastic_layers

HOOKS = {
    "_forward_hooks": "a forward hook",
    "_forward_pre_hooks": "a forward pre-hook",
    "_backward_hooks": "a backward hook",
    "_backward_pre_hooks": "a backward pre-hook",
}
# Hooks that change no value: this one marks the embeddings as requiring grad, for gradient checkpointing.
_HARMLESS = {
    (
        "transformers.modeling_utils",
        "PreTrainedModel.enable_input_require_grads.<locals>.make_inputs_require_grads",
    )
}
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


class NotNative(Exception):
    """A module is not one that the native networks compute exactly; `reason` says why, in half a sentence."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def class_path(module: nn.Module) -> str:
    """The full name of a module's exact class, as 'torch.nn.modules.linear.Linear'."""
    cls = type(module)
    return f"{cls.__module__}.{cls.__qualname__}"


def check_modules(root: nn.Module, allowed: Collection[str]) -> None:
    """Every module at and below `root` is exactly of a class in `allowed` and runs that class's own forward.

    Args:
        root: the network.
        allowed: full class names as `class_path` gives them, so that no optional library has to be imported.

    Raises:
        NotNative: another class (a subclass, an adapter, a quantised layer, ...), a hook, a parametrization,
            a replaced method, or a layer that draws random numbers in train mode.
    """
    if global_hooks():
        raise NotNative("a hook is registered for all modules of torch.nn")
    for name, module in root.named_modules():
        where = name or "the module"
        if "parametrizations" in module._modules:
            raise NotNative(f"{where} has a parametrization")
        for attribute, hook in HOOKS.items():
            if any(_matters(found) for found in getattr(module, attribute).values()):
                raise NotNative(f"{where} has {hook}")
        if class_path(module) not in allowed:
            raise NotNative(f"{where} is a {class_path(module)}")
        _check_methods(where, module)
    for name, module in [*stochastic_layers(root), *dropped_patches(root)]:
        if module.training:
            raise NotNative(f"{name or 'the module'} ({type(module).__name__}) is random in train mode")


def check_weights(weights: Iterable[tuple[str, Tensor]]) -> torch.dtype:
    """The one floating-point dtype of plain tensors on one device.

    Raises:
        NotNative: another kind of tensor (quantised, sharded, ...), several dtypes or devices, or float16.
    """
    first: tuple[str, Tensor] | None = None
    for key, weight in weights:
        if type(weight) not in (Tensor, nn.Parameter):
            raise NotNative(f"{key} is a {type(weight).__module__}.{type(weight).__qualname__}")
        if weight.dtype not in _DTYPES:
            raise NotNative(f"{key} is {weight.dtype}")
        first = first or (key, weight)
        for what in ("dtype", "device"):
            if getattr(weight, what) != getattr(first[1], what):
                raise NotNative(f"{key} is {getattr(weight, what)}, {first[0]} is {getattr(first[1], what)}")
    if first is None:
        raise NotNative("it has no weights")
    return first[1].dtype


def one(what: str, values: Iterable[Any]) -> Any:
    """The value that all of `values` share."""
    found = list(dict.fromkeys(values))
    if len(found) != 1:
        raise NotNative(f"{what} differs from layer to layer: {found}" if found else f"there is no {what}")
    return found[0]


def expect(condition: bool, reason: str) -> None:
    """NotNative with `reason` unless `condition` holds."""
    if not condition:
        raise NotNative(reason)


def _check_methods(where: str, module: nn.Module) -> None:
    for name in vars(module):
        if callable(getattr(type(module), name, None)):
            raise NotNative(f"{where}.{name} was replaced on the instance")
    for cls in type(module).__mro__:
        forward: Callable[..., Any] | None = vars(cls).get("forward")
        if forward is not None:
            # A forward that another module assigned to the class says so, unless it hides it.
            expect(forward.__module__ == cls.__module__, f"{where}: {cls.__qualname__}.forward was replaced")
            return


def _matters(hook: object) -> bool:
    return (getattr(hook, "__module__", None), getattr(hook, "__qualname__", None)) not in _HARMLESS


def global_hooks() -> bool:
    return any(getattr(nn.modules.module, "_global" + attribute, None) for attribute in HOOKS)
