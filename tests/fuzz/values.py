"""Hostile arguments: wrong types, odd tensors, numbers out of every range, objects that misbehave."""

import contextlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


class OwnError(Exception):
    """The error of a misbehaving argument: it may pass through unchanged."""


class Raises:
    """Every operation on it raises."""

    def _raise(self, *args: Any, **kwargs: Any) -> Any:
        raise OwnError("an argument's own error")

    __len__ = __iter__ = __getitem__ = __array__ = __float__ = __index__ = __int__ = __bool__ = _raise
    __getattr__ = __eq__ = __hash__ = __repr__ = __str__ = __fspath__ = __contains__ = __call__ = _raise
    __lt__ = __gt__ = __le__ = __ge__ = __add__ = __mul__ = __torch_function__ = _raise


class Lies:
    """A sequence and a number at once, with a wrong length."""

    shape, ndim, dtype, device = (2**62, -1), 7, "float99", "cpu"

    def __len__(self) -> int:
        return 2**62

    def __iter__(self) -> Any:
        return iter([None, self, "x"])

    def __getitem__(self, key: Any) -> Any:
        return self

    def __index__(self) -> int:
        return 2**70

    def __float__(self) -> float:
        return float("nan")


_PLAIN: list[Any] = [
    None, True, 0, 1, -1, 2, 7, 10**4, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1,
    10**5000, -0.0, 0.5, 1.0, -1.0, 1e-320, 1e308, float("nan"), float("inf"), 1j, "", "a", "sgd", "random",
    "mse", "cosine", "cpu", "cuda:99", "\0", "\ud800", "x" * 10_000, b"abc", (), [], {}, [0], [2**63], [None],
    [[]], [1, "a"], [0.5, float("nan")], (3, 4, 4), (2**32, 2**32), (0, 0), (1,) * 100, {"a": 1}, {1: 2},
    {"": torch.zeros(1)}, range(3), slice(-1, 2**70, 0), Ellipsis, int, torch.float16, torch.device("meta"),
    object(), np.float32("nan"), np.uint64(2**64 - 1), np.array(3), np.zeros((2, 0)), np.array(["a"]),
    np.array([None]), np.array([1, 2], ">i8"), np.array(["2020"], "M8[Y]"), np.arange(4.0)[::-1],
    np.zeros((3, 3), np.float16).T, np.zeros(3, [("a", "i4")]), np.array([2**64 - 1, 0], np.uint64),
]  # fmt: skip

_MADE: list[Callable[[], Any]] = [
    Raises,
    Lies,
    lambda: iter([1, 2]),
    lambda: lambda *args, **kwargs: torch.zeros(1),
    lambda: torch.nn.Linear(2, 2),
    lambda: torch.nn.UninitializedParameter(),
    lambda: torch.Generator(),
]

_DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.uint8, torch.int8,
    torch.int32, torch.int64, torch.uint64, torch.bool, torch.complex64, torch.complex128,
]  # fmt: skip
_SIDES = [0, 1, 2, 3, 4, 5, 8, 16, 17]
_NUMBERS: list[float] = [0, 1, -1, 0.5, 255, 1e30, -1e300, 2**62, float("nan"), float("inf"), float("-inf")]


def varied(given: Any, rng: random.Random) -> Any:
    """A good argument with one wrong part, at any depth, or another value in its place."""
    if rng.random() < 0.4 or isinstance(given, torch.nn.UninitializedParameter):
        return _value(rng)
    if isinstance(given, Tensor):
        return _tensor(rng, given)
    if isinstance(given, (list, tuple)) and given:
        items = list(given)
        at = rng.randrange(len(items))
        if rng.random() < 0.2:
            items = items[:at] if rng.random() < 0.5 else [*items, items[at]]
        else:
            items[at] = varied(items[at], rng)
        return type(given)(items) if type(given) in (list, tuple) else items
    if isinstance(given, dict) and given:
        copy = dict(given)
        key = rng.choice(list(copy))
        if rng.random() < 0.8:
            return copy | {key: varied(copy[key], rng)}
        kept = copy.pop(key)
        return copy | {rng.choice(["x", "", 3, None]): kept} if rng.random() < 0.5 else copy
    if isinstance(given, np.ndarray):
        return rng.choice([np.atleast_1d(given)[::-1], given.astype(object), given[None], given.ravel()[:0]])
    return _value(rng)


def _value(rng: random.Random) -> Any:
    kind = rng.random()
    if kind < 0.6:
        return rng.choice(_PLAIN)
    return rng.choice(_MADE)() if kind < 0.8 else _tensor(rng, torch.zeros(rng.choices(_SIDES, k=3)))


def _tensor(rng: random.Random, given: Tensor) -> Tensor:
    """A tensor near the given one that is odd in one or two ways."""
    made = given.detach()
    for _ in range(rng.choice([1, 1, 2])):
        with contextlib.suppress(Exception):  # torch does not make it
            made = rng.choice(_ODD)(made, rng)
    return made


def _other_dtype(made: Tensor, rng: random.Random) -> Tensor:
    return made.to(rng.choice(_DTYPES))


def _other_shape(made: Tensor, rng: random.Random) -> Tensor:
    axis = rng.randrange(made.ndim) if made.ndim else 0
    shapes: list[Callable[[], Tensor]] = [
        lambda: made.narrow(axis, 0, rng.randrange(made.shape[axis] + 1)),
        lambda: torch.cat([made, made], axis),
        lambda: made[None],
        lambda: made.flatten(),
    ]
    return rng.choice(shapes)()


def _other_number(made: Tensor, rng: random.Random) -> Tensor:
    made, number = made.clone().contiguous(), rng.choice(_NUMBERS)
    made.view(-1)[rng.randrange(made.numel() or 1)] = number if made.is_floating_point() else int(number)
    return made


def _other_layout(made: Tensor, rng: random.Random) -> Tensor:
    layouts: list[Callable[[], Tensor]] = [
        lambda: made.transpose(0, -1),
        lambda: made[:1].expand(3, *made.shape[1:]),
        lambda: made.as_strided(made.shape, [0] * made.ndim),
        lambda: made[..., ::2],
        made.to_sparse,
        made.to_mkldnn,
        lambda: torch._neg_view(made),
        lambda: torch.complex(made, made).conj().imag,
    ]
    return rng.choice(layouts)() if made.numel() < 1 << 20 else made


def _other_kind(made: Tensor, rng: random.Random) -> Tensor:
    with torch.inference_mode():
        inference = made.clone()
    kinds: list[Callable[[], Tensor]] = [
        lambda: made.clone().requires_grad_(),
        lambda: inference,
        lambda: made.to("meta"),
        lambda: torch.zeros(1).expand(*(1 << 20 for _ in range(max(made.ndim, 2)))),  # fits no memory
        lambda: torch.quantize_per_tensor(torch.zeros(2, 3), 0.1, 0, torch.qint8),
        lambda: torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(1, 3)]),
    ]
    return rng.choice(kinds)()


_ODD = [_other_dtype, _other_shape, _other_shape, _other_number, _other_layout, _other_kind]
