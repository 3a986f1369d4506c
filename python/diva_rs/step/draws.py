"""Draws: timesteps, noise and token choices of a batch, each a function of (seed, sample id, epoch, draw).

The numbers come from ChaCha8 streams keyed by what they are for, never from the order of calls: the same seed
and the same samples give the same draws on CPU and GPU, for any batch order, micro-batch size, thread count,
number of workers and ranks, before and after a resume.

>>> import diva_rs
>>> draws = diva_rs.draw(seed=0, ids=[7, 8, 9], draws=2, latent_shape=(4, 8, 8), patches=16, choose=5)
>>> draws
Draws(timesteps (3, 2), noise (3, 2, 4, 8, 8), tokens (3, 2, 5))
>>> alone = diva_rs.draw(seed=0, ids=[9], draws=2, latent_shape=(4, 8, 8), patches=16, choose=5)
>>> bool((alone.noise == draws[2:].noise).all())
True
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import diva_rs._native as _native
from diva_rs._base.tensors import ordinary
from diva_rs.data.keys import augment_seed, sample_keys
from diva_rs.errors import DataError, ShapeError, shown

__all__ = ["Array", "DrawPlan", "Draws", "augment_seed", "draw", "sample_keys"]

Array = npt.NDArray[Any] | torch.Tensor
"""What the fields of :class:`Draws` may be."""


@dataclass(frozen=True, repr=False, eq=False)
class Draws:
    """The draws of a batch of B samples, N for each.

    Fields are NumPy arrays or tensors (tensors may live on any device):

    * ``timesteps`` (B, N), whole numbers: indices into the noise schedule;
    * ``noise`` (B, N, \\*latent), floating point, standard normal;
    * ``tokens`` (B, N, k), whole numbers: chosen patches counted from 0, -1 for an empty slot; k may be 0.

    Raises ShapeError for other ranks, sizes or dtypes. Draws of one's own make any reference implementation
    comparable on the same numbers:

    >>> own = Draws(np.array([[10, 990]]), np.zeros((1, 2, 4, 8, 8)), np.zeros((1, 2, 0), np.int64))
    >>> len(own), own[:1].timesteps.tolist()
    (1, [[10, 990]])
    """

    timesteps: Array
    noise: Array
    tokens: Array

    def __post_init__(self) -> None:
        expected = {"timesteps": "(B, N)", "noise": "(B, N, *latent)", "tokens": "(B, N, k)"}
        lead = tuple(getattr(self.timesteps, "shape", ()))[:2]
        for name, shape in expected.items():
            value = getattr(self, name)
            if not isinstance(value, np.ndarray | torch.Tensor):
                raise ShapeError(
                    f"Draws: `{name}` is a {type(value).__name__}, expected a NumPy array or a tensor"
                )
            if isinstance(value, torch.Tensor):
                ordinary(name, value)
            rank_fits = (
                value.ndim >= 3 if name == "noise" else value.ndim == (2 if name == "timesteps" else 3)
            )
            if not rank_fits or tuple(value.shape[:2]) != lead:
                raise ShapeError(
                    f"Draws: `{name}` has shape {tuple(value.shape)}, expected {shape} with the (B, N) of "
                    f"`timesteps`, {lead}"
                )
            kind = _kind(value)
            if kind != ("f" if name == "noise" else "i"):
                wanted = "floating point" if name == "noise" else "whole numbers"
                raise ShapeError(f"Draws: `{name}` is {value.dtype}, expected {wanted}")

    def __len__(self) -> int:
        """B, the number of samples."""
        return int(self.timesteps.shape[0])

    def __getitem__(self, rows: slice) -> "Draws":
        """The draws of a slice of the batch, without a copy.

        Raises DataError for anything but a slice.
        """
        if not isinstance(rows, slice):
            raise DataError(f"Draws is cut by slices of the batch, such as draws[0:4], not by {shown(rows)}")
        return Draws(self.timesteps[rows], self.noise[rows], self.tokens[rows])

    def __repr__(self) -> str:
        shapes = (f"{f.name} {tuple(getattr(self, f.name).shape)}" for f in fields(self))
        return f"Draws({', '.join(shapes)})"

    def tensors(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``(timesteps, noise, tokens)`` on the device of ``like``: int64, the dtype of ``like``, int64.

        Host arrays go to a CUDA device through pinned memory and without blocking. On the CPU nothing is
        copied where the dtype fits already, so the tensors share the memory of the arrays. Raises ShapeError
        where ``like`` is not floating point.

        >>> draws = draw(seed=0, ids=[1], draws=2, latent_shape=(4, 8, 8), patches=16, choose=5)
        >>> [tuple(t.shape) for t in draws.tensors(torch.zeros(1, dtype=torch.float64))]
        [(1, 2), (1, 2, 4, 8, 8), (1, 2, 5)]
        """
        if not like.is_floating_point():
            raise ShapeError(
                f"Draws.tensors: `like` is {like.dtype}, expected floating point: noise takes its dtype"
            )
        return (
            _place(self.timesteps, like.device, torch.int64),
            _place(self.noise, like.device, like.dtype),
            _place(self.tokens, like.device, torch.int64),
        )


@dataclass(frozen=True)
class DrawPlan:
    """What to draw for each sample, checked once.

    ``seed`` 0..2**64-1; ``draws`` N per sample; ``latent_shape`` of one sample, without batch and draw;
    ``patches`` P of the vision tower. Tokens: ``choose`` k of P (distinct unless ``replacement``), or each
    patch with probability ``density`` (then k = P, and a patch that is not kept is an empty slot, -1), or
    none.

    ``timesteps`` lie in ``timestep_range`` (low, high), high excluded: ``"uniform"``; ``"stratified"`` (the
    range is cut into B*N equal strata and each is hit once); ``"logit-normal"`` (``low + floor(s * (high -
    low))``, s the sigmoid of ``logit_mean + logit_std * normal``, arXiv 2403.03206 section 3.1).

    Raises ConfigError naming the field that is wrong.

    >>> plan = DrawPlan(seed=0, draws=2, latent_shape=(4, 8, 8), timesteps="stratified")
    >>> sorted((plan.draw(["a.png", "b.png"]).timesteps.ravel() // 250).tolist())
    [0, 1, 2, 3]
    """

    seed: int
    draws: int
    latent_shape: tuple[int, ...]
    patches: int = 0
    choose: int | None = None
    replacement: bool = False
    density: float | None = None
    timesteps: str = "uniform"
    timestep_range: tuple[int, int] = (0, 1000)
    logit_mean: float = 0.0
    logit_std: float = 1.0
    _core: _native.DrawPlan = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        core = _native.DrawPlan(
            self.seed,
            self.draws,
            self.latent_shape,
            self.patches,
            choose=self.choose,
            replacement=self.replacement,
            density=self.density,
            timesteps=self.timesteps,
            timestep_range=self.timestep_range,
            logit=(self.logit_mean, self.logit_std),
        )
        # Lists, torch.Size and arrays are welcome; as tuples the plan compares and hashes.
        for name in ("latent_shape", "timestep_range"):
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(int(value[i]) for i in range(len(value))))
        object.__setattr__(self, "_core", core)

    def __reduce__(self) -> tuple[Any, ...]:
        # The native half is rebuilt from the fields, so that a plan travels to worker processes.
        return DrawPlan, tuple(getattr(self, f.name) for f in fields(self) if f.init)

    @property
    def native(self) -> _native.DrawPlan:
        """The plan as the native step takes it."""
        return self._core

    def draw(self, ids: Iterable[Any], epoch: int = 0) -> Draws:
        """The draws of the samples ``ids`` (see :func:`sample_keys`) in epoch ``epoch``.

        A sample's draws do not depend on the others in the batch, except for stratified timesteps, which are
        spread over the batch that is given: draw for the whole batch, then slice. Raises DataError for ids
        that cannot be used or an empty batch, DeviceError where the host's memory does not hold the result.

        >>> plan = DrawPlan(seed=0, draws=1, latent_shape=(4,))
        >>> bool((plan.draw([1, 2]).noise == plan.draw([2, 1]).noise[::-1]).all())
        True
        """
        return Draws(*self._core.draw(sample_keys(ids), epoch))


def draw(
    seed: int,
    ids: Iterable[Any],
    draws: int,
    latent_shape: tuple[int, ...],
    patches: int = 0,
    choose: int | None = None,
    replacement: bool = False,
    epoch: int = 0,
) -> Draws:
    """Uniform timesteps in [0, 1000), noise and token choices for the samples ``ids``, in one call.

    Returns ``Draws(timesteps int64 (B, N), noise float32 (B, N, *latent_shape), tokens int64 (B, N, k))`` as
    NumPy arrays. Raises ConfigError for a setting and DataError for ids that cannot be used. See
    :class:`DrawPlan` for other timesteps and token rules.

    >>> draw(seed=0, ids=["a.png"], draws=2, latent_shape=(4, 8, 8), patches=16, choose=3).tokens.shape
    (1, 2, 3)
    """
    plan = DrawPlan(seed, draws, latent_shape, patches, choose=choose, replacement=replacement)
    return plan.draw(ids, epoch)


def _kind(value: Array) -> str:
    """``"f"`` for floating point, ``"i"`` for whole numbers, ``""`` for the rest."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            return "f"
        return "" if value.is_complex() or value.dtype == torch.bool else "i"
    return {"f": "f", "i": "i", "u": "i"}.get(value.dtype.kind, "")


def _place(value: Array, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    if isinstance(value, np.ndarray):
        # torch takes no negative strides, foreign byte orders, read-only memory or long doubles.
        if _kind(value) == "i":
            value = np.require(value, np.int64, ["C", "W"])
        elif value.dtype not in (np.float16, np.float32, np.float64) or not value.dtype.isnative:
            value = np.require(value, np.float64, ["C", "W"])
        else:
            value = np.require(value, None, ["C", "W"])
        value = torch.from_numpy(value)
    if device.type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()
    # In two moves: a copy that changes device and dtype at once casts on the host, into memory that is not
    # pinned. Only towards CUDA is it safe not to wait: a copy to the host could be read too soon.
    return value.to(device, non_blocking=device.type == "cuda").to(dtype)
