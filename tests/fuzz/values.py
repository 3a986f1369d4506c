"""Hostile arguments: wrong types, odd tensors, numbers out of every range, objects that misbehave."""

import contextlib
import random
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor


class OwnError(Exception):
    """What a misbehaving argument raises of its own: it may pass through unchanged."""


class Raises:
    """Every question about it is an error."""

    def _raise(self, *args: Any, **kwargs: Any) -> Any:
        raise OwnError("an argument's own error")

    __len__ = __iter__ = __getitem__ = __array__ = __float__ = __index__ = __int__ = __bool__ = _raise
    __getattr__ = __eq__ = __hash__ = __repr__ = __str__ = __fspath__ = __contains__ = __call__ = _raise
    __lt__ = __gt__ = __le__ = __ge__ = __add__ = __mul__ = __torch_function__ = _raise


class Lies:
    """A sequence, a mapping and an array at once, of a length that it does not have."""

    shape, ndim, dtype, device = (2**62, -1), 7, "float99", "cpu"

    def __init__(self, length: Any = 3) -> None:
        self.length = length

    def __len__(self) -> Any:
        return self.length

    def __iter__(self) -> Any:
        return iter([None, self, "x"])

    def __getitem__(self, key: Any) -> Any:
        return self

    def keys(self) -> Any:
        return ["images", 3, self]

    def __index__(self) -> int:
        return 2**70

    def __float__(self) -> float:
        return float("nan")

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.array(["x", None], object)

    def __fspath__(self) -> Any:
        return "nowhere/at all"


class Anything:
    """Every attribute is there and can be called, as of a Mock."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self


class Text(str):
    """A string by inheritance alone."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = str.__hash__


def _endless_list() -> Any:
    endless: list[Any] = []
    endless.append(endless)
    return endless


_PLAIN: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 255, 10**4, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**62, 2**63 -
    1, 2**63, 2**64 - 1, 2**64, -(2**31), -(2**63), -(2**63) - 1, 10**30, 10**5000, 0.0, -0.0, 0.5, 1.0,
    -1.0, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf"), 1j, "", "a", "sgd", "random",
    "mse", "cosine", "cpu", "cuda:99", "\0", "\ud800", "x" * 10_000, "nowhere/at all", b"", b"abc",
    bytearray(4), memoryview(b"ab"), (), [], {}, set(), frozenset({1}), [0], [-1], [2**63], [None], [[]],
    [1, "a"], [0.5, float("nan")], ["a", "b"], (3, 4, 4), (4, 2**40), (2**32, 2**32), (0, 0), (1,) * 100,
    {"a": 1}, {1: 2}, {"images": None}, {"": torch.zeros(1)}, range(3), range(0), slice(None), slice(-1,
    2**70, 0), Ellipsis, NotImplemented, int, torch.float16, torch.device("meta"), torch.Size([2, 3]),
    object(), Exception("x"), Decimal("1e400"), Fraction(1, 3), np.float32("nan"), np.int8(-1),
    np.bool_(True), np.uint64(2**64 - 1), np.array(3), np.zeros(0), np.zeros((2, 0)), np.array(["a"]),
    np.array([None]), np.array([1, 2], ">i8"), np.array(["2020"], "M8[Y]"), np.arange(4.0)[::-1],
    np.zeros((3, 3), np.float16).T, np.zeros(3, [("a", "i4")]), np.array([2**64 - 1, 0], np.uint64),
    np.ma.masked, np.zeros(3, np.longdouble),
]  # fmt: skip

_MADE: list[Callable[[], Any]] = [
    Raises,
    Lies,
    lambda: Lies(2**62),
    lambda: Lies(-1),
    lambda: Lies("x"),
    Anything,
    lambda: Text("sgd"),
    _endless_list,
    lambda: iter([1, 2]),
    lambda: (x for x in [torch.zeros(1)]),
    lambda: lambda *args, **kwargs: None,
    lambda: lambda *args, **kwargs: torch.zeros(1),
    lambda: torch.nn.Identity(),
    lambda: torch.nn.Linear(2, 2),
    lambda: torch.nn.UninitializedParameter(),
    lambda: torch.Generator(),
]

_DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.uint8, torch.int8,
    torch.int32, torch.int64, torch.uint64, torch.bool, torch.complex64, torch.complex128,
]  # fmt: skip
_SIDES = [0, 1, 2, 3, 4, 5, 8, 16, 17]
_LARGE = 1 << 20
_NUMBERS: list[float] = [0, 1, -1, 0.5, 2, 3, 255, 1e30, -1e300, 2**62, -(2**62)]
_NUMBERS += [float("nan"), float("inf"), float("-inf")]


def tensor(rng: random.Random, like: Tensor | None = None) -> Tensor:
    """A tensor that is odd in one or two ways, of a shape of its own or near that of another one."""
    made = torch.zeros(rng.choices(_SIDES, k=rng.randrange(6))) if like is None else like.detach()
    with contextlib.suppress(RuntimeError):  # larger than memory
        made = made.clone()
    for _ in range(rng.choice([1, 1, 2])):
        with contextlib.suppress(RuntimeError, ValueError):  # what torch itself does not make
            made = rng.choice(_ODD)(made, rng)
    return made


def value(rng: random.Random) -> Any:
    """Something that hardly fits anywhere."""
    kind = rng.random()
    if kind < 0.6:
        return rng.choice(_PLAIN)
    return rng.choice(_MADE)() if kind < 0.8 else tensor(rng)


def varied(given: Any, rng: random.Random) -> Any:
    """A good argument with something wrong in it, at any depth; or something else in its place."""
    deeper = rng.random() < 0.6 and not isinstance(given, torch.nn.UninitializedParameter)
    if isinstance(given, Tensor) and deeper:
        return tensor(rng, given)
    if isinstance(given, (list, tuple)) and given and deeper:
        items = list(given)
        at = rng.randrange(len(items))
        if rng.random() < 0.2:
            items = items[:at] if rng.random() < 0.5 else [*items, items[at]]
        else:
            items[at] = varied(items[at], rng)
        return type(given)(items) if type(given) in (list, tuple) else items
    if isinstance(given, dict) and given and deeper:
        copy = dict(given)
        key = rng.choice(list(copy))
        if rng.random() < 0.2:
            kept = copy.pop(key)
            if rng.random() < 0.5:
                copy[rng.choice(["x", "", 3, None])] = kept
        else:
            copy[key] = varied(copy[key], rng)
        return copy
    if isinstance(given, np.ndarray) and deeper:
        return rng.choice(
            [
                np.atleast_1d(given)[::-1],
                np.atleast_1d(given)[:0],
                given.astype(object),
                given[None],
                np.asfortranarray(given),
            ]
        )
    return value(rng)


def _cut(made: Tensor, rng: random.Random) -> Tensor:
    axis = rng.randrange(made.ndim) if made.ndim else 0
    return made.narrow(axis, 0, rng.randrange(made.shape[axis] + 1)) if made.ndim else made[None]


def _longer(made: Tensor, rng: random.Random) -> Tensor:
    return torch.cat([made, made], rng.randrange(made.ndim)) if made.ndim else made[None, None]


def _number(made: Tensor, rng: random.Random) -> Tensor:
    plain = made.layout == torch.strided and not (made.is_meta or made.is_quantized)
    if made.numel() and plain and made.dtype != torch.bool:
        made = made.contiguous().clone()
        limit = torch.iinfo(made.dtype).max if not (made.is_floating_point() or made.is_complex()) else None
        number = rng.choice(_NUMBERS)
        if limit is None or (number == number and 0 <= number <= limit):
            made.view(-1)[rng.randrange(made.numel())] = number if limit is None else int(number)
    return made


def _sparse(made: Tensor, rng: random.Random) -> Tensor:
    plain = made.layout == torch.strided and not made.is_meta and made.dtype in _DTYPES[:2]
    if not plain or not made.ndim or made.numel() > _LARGE:  # the zeros of a huge one would be counted
        return made
    return rng.choice(
        [torch.Tensor.to_sparse, _csr, torch.Tensor.to_mkldnn if made.dtype == torch.float32 else _csr]
    )(made)


def _csr(made: Tensor) -> Tensor:
    return made.to_sparse_csr() if made.ndim == 2 else made.to_sparse()


def _strided(made: Tensor, rng: random.Random) -> Tensor:
    if made.layout != torch.strided or made.ndim < 2:
        return made
    return rng.choice(
        [
            lambda: made.transpose(0, -1),
            lambda: made.transpose(0, -1).contiguous().transpose(0, -1),
            lambda: made[:1].expand(3, *made.shape[1:]) if len(made) else made,
            lambda: made.as_strided(made.shape, [0] * made.ndim) if made.numel() else made,
            lambda: made[..., ::2],
        ]
    )()


def _lazy(made: Tensor, rng: random.Random) -> Tensor:
    """Values that are computed on reading: conjugated, negated."""
    if made.is_meta or made.layout != torch.strided or made.dtype not in (torch.float32, torch.float64):
        return made
    return rng.choice(
        [torch._neg_view, lambda t: torch.complex(t, t).conj(), lambda t: torch.complex(t, t).conj().imag]
    )(made)


def _huge(made: Tensor, rng: random.Random) -> Tensor:
    """More elements than memory could hold, of one stored number."""
    return torch.zeros(1).expand(*(1 << 20 for _ in range(max(made.ndim, 2))))


def _wrapped(made: Tensor, rng: random.Random) -> Tensor:
    if made.is_floating_point() and made.layout == torch.strided:
        with torch.inference_mode():
            inference = made.clone()
        return rng.choice([made.clone().requires_grad_(), torch.nn.Parameter(made), inference])
    return made


_ODD: list[Callable[[Tensor, random.Random], Tensor]] = [
    lambda made, rng: made.to(rng.choice(_DTYPES)) if made.layout == torch.strided else made,
    lambda made, rng: made.to(rng.choice(_DTYPES)) if made.layout == torch.strided else made,
    _cut,
    _cut,
    _longer,
    lambda made, rng: made[None] if made.layout == torch.strided else made,
    lambda made, rng: made.flatten() if made.layout == torch.strided else made,
    _number,
    _number,
    _sparse,
    _strided,
    _lazy,
    _huge,
    _wrapped,
    lambda made, rng: made.to("meta") if made.layout == torch.strided else made,
    lambda made, rng: torch.quantize_per_tensor(torch.zeros(2, 3), 0.1, 0, torch.qint8),
    lambda made, rng: torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(1, 3)]),
]
