"""Whether a network is still what it was when a trainer was made: cheap enough to check at every step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs.clip.wrappers import adapters
from diva_rs.errors import ConfigError, DeviceError
from diva_rs.native.inspect import HOOKS, NotNative, global_hooks

_FIRST = "prepare the models first, then make the trainer"


class ModuleSnapshot:
    """Notices that a module was moved, given other weights or, where it runs natively, other code.

    A native network shares the weights of a module and none of its code: it would ignore a hook, a replaced
    layer or dropout in train mode.

    >>> linear = nn.Linear(2, 2)
    >>> snapshot = ModuleSnapshot("the teacher", linear)
    >>> snapshot.check()
    >>> _ = linear.double()
    >>> snapshot.check()
    Traceback (most recent call last):
    diva_rs.errors.DeviceError: the teacher: weight is now torch.float64 on cpu, but was torch.float32 ...
    """

    def __init__(self, what: str, root: nn.Module, rebuild: Callable[[], Any] | None = None) -> None:
        """``rebuild`` makes the native network again, or raises NotNative; None: the module runs itself."""
        self._what, self._root, self._rebuild = what, root, rebuild
        self._weights = _weights(root)
        self._code = self._read()

    def check(self) -> None:
        """Compare with the state at the start.

        DeviceError: a weight was moved or cast. ConfigError: it is another tensor, or the code changed.
        """
        weights = _weights(self._root)
        for name in (*self._weights, *weights):
            if name not in weights:
                raise ConfigError(f"{self._what} has no weight {name} any more: {_FIRST}")
            if name not in self._weights:
                raise ConfigError(f"{self._what} has a new weight {name}: {_FIRST}")
        for name, (*was, place) in self._weights.items():
            *now, now_at = weights[name]
            if now != was:
                raise DeviceError(
                    f"{self._what}: {name} is now {now[0]} on {now[1]}, but was {was[0]} on {was[1]} when "
                    f"the trainer was made: {_FIRST}"
                )
            if now_at != place:
                raise ConfigError(
                    f"{self._what}: {name} is another tensor than when the trainer was made: {_FIRST}"
                )
        code = self._read()
        if self._rebuild is None or _same(self._code, code):
            return
        try:
            self._rebuild()
        except NotNative as reason:
            raise ConfigError(
                f"{self._what} was changed after the trainer was made ({reason}), which its native network "
                f'would not see: {_FIRST}; or use backend="torch"'
            ) from reason
        self._code = code  # the change makes no difference

    def _read(self) -> list[Any]:
        """Everything that decides what the modules compute, but for the values of weights."""
        state: list[Any] = [global_hooks()]
        for module in self._root.modules():
            # The objects themselves: an id is used again by the next object at its address.
            state += [module, type(module), type(module).forward, *vars(module).values()]
            for name in HOOKS:
                state += [*getattr(module, name).values(), len(getattr(module, name))]
        return state


def _weights(root: nn.Module) -> dict[str, tuple[torch.dtype, torch.device, int]]:
    """Dtype, device and address of each weight, without a reference to it."""
    # peft's attention gives the layer inside new weights at each pass.
    inside = tuple(f"{path}.base_layer." for path in adapters(root))
    found = {}
    for name, weight in root.named_parameters():
        if name.startswith(inside) and not weight.requires_grad:
            continue
        # Another storage under the same parameter (`weight.data = ...`) does not reach a native network.
        ordinary = type(weight) in (Tensor, nn.Parameter)
        found[name] = (weight.dtype, weight.device, weight.data_ptr() if ordinary else id(weight))
    return found


def _same(before: list[Any], now: list[Any]) -> bool:
    return len(before) == len(now) and all(a is b for a, b in zip(before, now, strict=True))
