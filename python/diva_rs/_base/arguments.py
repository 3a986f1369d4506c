"""Arguments of public functions, refused by name before anything is done with them."""

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from diva_rs._base.settings import Kind
from diva_rs.errors import ConfigError, DataError, DivaError, shown

_P = ParamSpec("_P")
_R = TypeVar("_R")


def takes(**kinds: Kind) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Have a function's arguments checked before it runs; each arrives as its kind keeps it.

    Kinds of settings are in `diva_rs._base.settings`, of objects in `diva_rs._base.kinds`. Defaults are not
    looked at.

    Raises (when the function is called):
        ConfigError, or what the kind raises: names the argument.

    >>> from diva_rs._base.settings import integer
    >>> @takes(batch=integer(least=1))
    ... def half(batch):
    ...     return batch // 2
    >>> half(8)
    4
    >>> half("many")
    Traceback (most recent call last):
    diva_rs.errors.ConfigError: batch='many': an integer of at least 1 is needed
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        signature = inspect.signature(function)
        unknown = kinds.keys() - signature.parameters.keys()
        if unknown:
            raise AssertionError(f"{function.__qualname__} has no arguments {sorted(unknown)}")

        @functools.wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            given = signature.bind(*args, **kwargs)
            for name in given.arguments.keys() & kinds.keys():
                given.arguments[name] = checked(name, given.arguments[name], kinds[name])
            return function(*given.args, **given.kwargs)

        return call

    return decorate


def checked(name: str, value: Any, kind: Kind) -> Any:
    """The value as its kind keeps it.

    Raises:
        ConfigError, or the exception of diva_rs that the kind raises: it is of another type or out of range.

    >>> from diva_rs._base.settings import integer
    >>> checked("resamples", "many", integer(least=1))
    Traceback (most recent call last):
    diva_rs.errors.ConfigError: resamples='many': an integer of at least 1 is needed
    """
    try:
        return kind.convert(value)
    except (DivaError, ValueError, OverflowError) as err:
        error = type(err) if isinstance(err, DivaError) else ConfigError
        raise error(f"{name}={described(value)}: {err}") from err


def described(value: Any) -> str:
    """What a message shows of an argument: of tensors and arrays no number is read.

    >>> described(torch.zeros(2, 3)), described("a")
    ('<torch.float32 (2, 3)>', "'a'")
    """
    if not isinstance(value, (Tensor, np.ndarray)):
        return shown(value)
    try:
        shape = f" {tuple(value.shape)}"
    except (RuntimeError, ValueError):  # nested tensors and parameters without values have no shape
        shape = ", of no shape"
    layout = value.layout if isinstance(value, Tensor) else torch.strided
    odd = "" if layout == torch.strided else f" in layout {layout}"
    return f"<{value.dtype}{shape}{odd}>"


@contextmanager
def refused_by(model: str, what: str) -> Iterator[None]:
    """What another library says against an input becomes a DataError that names the input.

    >>> with refused_by("the layer", "pixels"):
    ...     torch.nn.Linear(2, 2)(torch.zeros(1, 3))
    Traceback (most recent call last):
    diva_rs.errors.DataError: the layer does not take pixels: mat1 and mat2 shapes cannot be multiplied ...
    """
    try:
        yield
    except (DivaError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError, AssertionError) as err:
        if "allocate memory" in str(err):
            raise
        line = (str(err).strip().splitlines() or [type(err).__name__])[0]
        raise DataError(f"{model} does not take {what}: {line[:200]}") from err


def as_path(path: Any, name: str = "path") -> Path:
    """The path.

    Raises:
        ConfigError: it is neither a string nor an ``os.PathLike`` of one, or no file can have that name.

    >>> as_path(3)
    Traceback (most recent call last):
    diva_rs.errors.ConfigError: path=3: a string or a pathlib.Path is needed
    """
    try:
        found = Path(path)
    except TypeError as err:
        raise ConfigError(f"{name}={described(path)}: a string or a pathlib.Path is needed") from err
    try:
        possible = b"\0" not in os.fsencode(found) and all(len(os.fsencode(n)) < 256 for n in found.parts)
    except ValueError:  # half of a character
        possible = False
    if not possible:
        raise ConfigError(f"{name}={described(path)}: no file can have that name")
    return found


def of_type(name: str, value: Any, kind: type, words: str) -> None:
    """Refuse a value of another type; ``words`` say what is needed.

    Raises:
        ConfigError: it is no ``kind``.

    >>> of_type("other", 3, str, "a string")
    Traceback (most recent call last):
    diva_rs.errors.ConfigError: other is a int: a string is needed
    """
    if not isinstance(value, kind):
        raise ConfigError(f"{name} is a {type(value).__name__}: {words} is needed")
