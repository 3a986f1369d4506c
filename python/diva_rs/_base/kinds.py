"""Kinds of arguments that are objects: models, tensors, functions, paths. Those of settings are in
`diva_rs._base.settings`; `diva_rs._base.arguments.takes` checks both."""

import os
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from diva_rs._base.arguments import as_path
from diva_rs._base.settings import Kind, integer, number, several
from diva_rs.errors import DeviceError, ShapeError

_MOST = 1 << 36  # numbers in a tensor: beyond, no memory holds a result
_MOST_ITEMS = 1 << 26

EPOCH = integer(0, (1 << 63) - 1)
SEED = integer(-(1 << 63), (1 << 64) - 1)  # what torch.manual_seed takes
_PLAIN = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


CHANNELS = several(number(), 3)  # a value for each of red, green and blue


def instance(kind: type | tuple[type, ...], words: str) -> Kind:
    """An object of one of these classes.

    >>> instance(int, "a number").convert("a")
    Traceback (most recent call last):
    ValueError: a number is needed
    """

    def convert(value: Any) -> Any:
        if not isinstance(value, kind):
            raise ValueError(f"{words} is needed")
        return value

    return Kind(words, convert, str)


def function(words: str = "a function") -> Kind:
    """Something that can be called.

    >>> function().convert(len) is len
    True
    """

    def convert(value: Any) -> Any:
        if not callable(value):
            raise ValueError(f"{words} is needed")
        return value

    return Kind(words, convert, str)


def model(*methods: str) -> Kind:
    """An ``nn.Module`` with these methods.

    >>> model("encode_image").convert(nn.Identity())
    Traceback (most recent call last):
    ValueError: a model with encode_image is needed
    """
    words = f"a model with {' and '.join(methods)}" if methods else "a model (torch.nn.Module)"

    def convert(value: Any) -> Any:
        if not isinstance(value, nn.Module) or not all(
            callable(getattr(value, name, None)) for name in methods
        ):
            raise ValueError(f"{words} is needed")
        return value

    return Kind(words, convert, str)


def having(words: str, *names: str) -> Kind:
    """An object of any class with these attributes, special methods among them.

    >>> having("something with a length", "__len__").convert(3)
    Traceback (most recent call last):
    ValueError: something with a length is needed
    """

    def convert(value: Any) -> Any:
        for name in names:
            # Python looks special methods up in the class, whatever an object pretends.
            if not hasattr(type(value) if name.startswith("__") else value, name):
                raise ValueError(f"{words} is needed")
        return value

    return Kind(words, convert, str)


def iterable(words: str) -> Kind:
    """Something to go through that is not one string, path, mapping, array or tensor.

    >>> iterable("batches").convert(torch.zeros(2, 3))
    Traceback (most recent call last):
    ValueError: an iterable of batches is needed
    """

    def convert(value: Any) -> Any:
        if not isinstance(value, Iterable) or isinstance(value, (str, bytes, Mapping, np.ndarray, Tensor)):
            raise ValueError(f"an iterable of {words} is needed")
        return value

    return Kind(f"an iterable of {words}", convert, str)


def each(item: Kind, words: str, least: int = 0) -> Kind:
    """A list of at least ``least`` values of one kind, from anything that can be gone through once.

    >>> from diva_rs._base.settings import integer
    >>> each(integer(0), "scene numbers").convert(range(2))
    [0, 1]
    """

    def convert(value: Any) -> list[Any]:
        if not isinstance(value, Iterable) or isinstance(value, (str, bytes, Mapping)):
            raise ValueError(f"a list of {words} is needed")
        try:
            if isinstance(value, (np.ndarray, Tensor)):
                plain = isinstance(value, np.ndarray) or is_dense(value)
                if not plain or value.ndim != 1 or len(value) > _MOST_ITEMS:
                    raise ValueError(f"a list of {words} is needed, or an array of one axis")
                value = value.tolist()
            found = list(iter(value))  # an object's own length may be a lie
        except (TypeError, RuntimeError) as err:  # tensors of odd kinds
            raise ValueError(f"a list of {words} is needed") from err
        if len(found) < least:
            raise ValueError(f"a list of {words} that is not empty is needed")
        return [item.convert(entry) for entry in found]

    return Kind(f"a list of {words}", convert, str)


def path() -> Kind:
    """A string or an ``os.PathLike``, as a Path.

    >>> path().convert("a/b").name
    'b'
    """

    def convert(value: Any) -> Any:
        if not isinstance(value, (str, os.PathLike)):
            raise ValueError("a string or a pathlib.Path is needed")
        return as_path(value)

    return Kind("a path", convert, str)


def is_dense(value: Any) -> TypeGuard[Tensor]:
    """Whether it is a tensor whose numbers lie in memory one by one, or would if it were not on "meta".

    >>> is_dense(torch.eye(2)), is_dense(torch.eye(2).to_sparse())
    (True, False)
    """
    return (
        isinstance(value, Tensor)
        and not torch.nn.parameter.is_lazy(value)
        and not value.is_nested
        and value.layout == torch.strided
        and not value.is_quantized
        and value.numel() <= _MOST
    )


def dense(values: bool = False) -> Kind:
    """A tensor of any rank and dtype as of `is_dense`; with ``values`` it must not be on "meta".

    One that was made under ``torch.inference_mode`` is copied, so that autograd can take it.

    Raises (when it converts):
        ShapeError: it is none.

    >>> dense().convert(torch.eye(2).to_sparse())
    Traceback (most recent call last):
    diva_rs.errors.ShapeError: an ordinary tensor is needed
    """

    def convert(value: Any) -> Tensor:
        if not is_dense(value):
            raise ShapeError("an ordinary tensor is needed")
        if values and value.is_meta:
            raise ShapeError("a tensor on the meta device holds no numbers")
        return value.clone() if value.is_inference() and not torch.is_inference_mode_enabled() else value

    return Kind("a tensor", convert, str)


def tensor(shape: str, whole: bool = False) -> Kind:
    """An ordinary tensor of the rank that ``shape`` has, as in "(B, C, h, w)", "(B, ...)" or "(...)".

    Ordinary: as of `dense`, of float32, float64, float16 or bfloat16, or, ``whole``, of signed whole numbers
    or uint8. Values are not looked at.

    Raises (when it converts):
        ShapeError: it is none.

    >>> tensor("(B, L)", whole=True).convert(torch.zeros(2, 3))
    Traceback (most recent call last):
    diva_rs.errors.ShapeError: a tensor (B, L) of whole numbers is needed
    """
    words = f"a tensor {shape} of {'whole numbers' if whole else 'floating point'}"
    axes = [axis for axis in shape.strip("()").split(",") if axis.strip()]
    least = len([axis for axis in axes if axis.strip() != "..."])
    open_ended = any(axis.strip() == "..." for axis in axes)

    plain = dense()

    def convert(value: Any) -> Tensor:
        try:
            found: Tensor = plain.convert(value)
        except ShapeError as err:
            raise ShapeError(f"{words} is needed") from err
        rank = found.ndim >= least if open_ended else found.ndim == least
        if not rank or found.dtype not in (_WHOLE if whole else _PLAIN):
            raise ShapeError(f"{words} is needed")
        return found

    return Kind(words, convert, str)


def device() -> Kind:
    """A device of this machine by name, by number or as a ``torch.device``; kept as tensors report it.

    Raises (when it converts):
        DeviceError: it is none, or this machine or this build of PyTorch has it not.

    >>> device().convert("cpu")
    device(type='cpu')
    """

    def convert(value: Any) -> torch.device:
        if not isinstance(value, (str, int, torch.device)) or isinstance(value, bool):
            raise DeviceError('a device is needed, such as "cpu" or "cuda:0"')
        try:
            # The tensor's own: torch.device("cuda") compares unequal to the "cuda:0" that tensors report.
            return torch.empty(0, device=value).device
        except (RuntimeError, AssertionError, NotImplementedError, OverflowError) as err:
            raise DeviceError(f"it is not available: {str(err).splitlines()[0][:200]}") from err

    return Kind("a device", convert, str)
