"""Whether a network is still what it was when a trainer was made: cheap enough to check at every step."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

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
        self._weights = {name: _Weight(weight) for name, weight in root.named_parameters()}
        self._code = self._read()

    def check(self) -> None:
        """Compare with the state at the start.

        Raises:
            DeviceError: a weight is on another device or of another dtype.
            ConfigError: a weight is another tensor, or the module computes something else.
        """
        self._check_weights()
        if self._rebuild is None or _same(self._code, self._read()):
            return
        try:
            self._rebuild()
        except NotNative as reason:
            raise ConfigError(
                f"{self._what} was changed after the trainer was made ({reason}), which its native network "
                f'would not see: {_FIRST}; or use backend="torch"'
            ) from reason
        self._code = self._read()  # the change makes no difference

    def _check_weights(self) -> None:
        found = {name: _Weight(weight) for name, weight in self._root.named_parameters()}
        for name, was in self._weights.items():
            now = found.pop(name, None)
            if now is None:
                raise ConfigError(f"{self._what} has no weight {name} any more: {_FIRST}")
            if now.dtype != was.dtype or now.device != was.device:
                raise DeviceError(
                    f"{self._what}: {name} is now {now.dtype} on {now.device}, but was {was.dtype} on "
                    f"{was.device} when the trainer was made: {_FIRST}"
                )
            if now.place != was.place:
                raise ConfigError(
                    f"{self._what}: {name} is another tensor than when the trainer was made: {_FIRST}"
                )
        if found:
            raise ConfigError(f"{self._what} has a new weight {next(iter(found))}: {_FIRST}")

    def _read(self) -> list[Any]:
        """Everything that decides what the modules compute, but for the values of weights."""
        state: list[Any] = [global_hooks()]
        for module in self._root.modules():
            # The objects themselves: an id is used again by the next object at its address.
            state += [module, type(module), type(module).forward, *vars(module).values()]
            for name in HOOKS:
                state += [*getattr(module, name).values(), len(getattr(module, name))]
        return state


class _Weight:
    """Where a weight is, without a reference to it."""

    def __init__(self, weight: Tensor) -> None:
        self.dtype, self.device = weight.dtype, weight.device
        # Another storage under the same parameter (`weight.data = ...`) does not reach a native network.
        ordinary = type(weight) in (Tensor, nn.Parameter)
        self.place = weight.data_ptr() if ordinary else id(weight)


def _same(before: list[Any], now: list[Any]) -> bool:
    return len(before) == len(now) and all(a is b for a, b in zip(before, now, strict=True))
