"""Whether a module computes what its weights say and nothing else.

A native network shares a module's weights and not its code. Whatever changes the result without being a
weight (a hook, a replaced layer, a subclass, dropout) must be found here, or the network would silently
compute something else.
"""

from collections.abc import Collection, Iterable
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


def class_path(module: object) -> str:
    """The full name of a module's exact class, as 'torch.nn.modules.linear.Linear'."""
    cls = type(module)
    return f"{cls.__module__}.{cls.__qualname__}"


def check_modules(root: nn.Module, allowed: Collection[str]) -> None:
    """NotNative unless all modules of `root` are of an allowed class and run that class's own code.

    `allowed` holds full names of classes as `class_path` gives them, so that no optional library has to be
    imported. A subclass, an adapter, a quantised layer, a hook, a parametrization, a replaced method and a
    layer that draws random numbers in train mode are not native.
    """
    expect(not global_hooks(), "a hook is registered for all modules of torch.nn")
    for name, module in root.named_modules():
        where = name or "the module"
        expect("parametrizations" not in module._modules, f"{where} has a parametrization")
        for attribute, hook in HOOKS.items():
            found = getattr(module, attribute).values()
            expect(all(_place(each) in _HARMLESS for each in found), f"{where} has {hook}")
        expect(class_path(module) in allowed, f"{where} is a {class_path(module)}")
        _check_methods(where, module)
    for name, module in [*stochastic_layers(root), *dropped_patches(root)]:
        kind = type(module).__name__
        expect(not module.training, f"{name or 'the module'} ({kind}) is random in train mode")


def check_weights(weights: Iterable[tuple[str, Tensor]]) -> torch.dtype:
    """The one floating-point dtype of plain tensors on one device.

    Quantised and sharded tensors, several dtypes or devices, and float16 are not native.
    """
    tensors = dict(weights)
    expect(bool(tensors), "it has no weights")
    first, like = next(iter(tensors.items()))
    for key, weight in tensors.items():
        expect(type(weight) in (Tensor, nn.Parameter), f"{key} is a {class_path(weight)}")
        expect(weight.dtype in _DTYPES, f"{key} is {weight.dtype}")
        expect(weight.dtype == like.dtype, f"{key} is {weight.dtype}, {first} is {like.dtype}")
        expect(weight.device == like.device, f"{key} is {weight.device}, {first} is {like.device}")
    return like.dtype


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
        method = callable(getattr(type(module), name, None))
        expect(not method, f"{where}.{name} was replaced on the instance")
    cls = next(cls for cls in type(module).__mro__ if "forward" in vars(cls))
    # A forward that another module assigned to the class says so, unless it hides it.
    own = vars(cls)["forward"].__module__ == cls.__module__
    expect(own, f"{where}: {cls.__qualname__}.forward was replaced")


def _place(hook: object) -> tuple[Any, Any]:
    return (getattr(hook, "__module__", None), getattr(hook, "__qualname__", None))


def global_hooks() -> bool:
    """Whether a hook is registered for all modules."""
    return any(getattr(nn.modules.module, "_global" + attribute, None) for attribute in HOOKS)
