"""Are these images what was declared? On the host at once; on a GPU without a synchronisation, reported
later."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diva_rs._base.arguments import checked, described, takes
from diva_rs._base.kinds import CHANNELS, is_dense, tensor
from diva_rs._base.settings import integer, number, optional, several, string
from diva_rs.data.conventions import OPENAI_MEAN, OPENAI_STD, channels, checked_convention
from diva_rs.errors import DataError, ShapeError, shown

# Share of the declared range that a value may lie outside it: a bicubic resize upstream overshoots at hard
# edges, while a wrong convention is off by far more.
TOLERANCE = 0.05
_SPREAD = several(number(above=0), 3)
NUMBER = optional(integer(0))
PATIENCE = 256  # batches that a guard keeps unreported: a loop that never asks still hears of a bad image


Ids = Sequence[int | str] | Tensor | np.ndarray[Any, Any]


class _Place(NamedTuple):
    what: str
    batch: int | None
    ids: Ids | None

    def __str__(self) -> str:
        return self.what if self.batch is None else f"{self.what} of batch {self.batch}"

    def sample(self, number: int) -> str:
        try:
            name = None if self.ids is None else self.ids[number]
            name = name.item() if isinstance(name, Tensor) else name
        except (LookupError, TypeError, ValueError, RuntimeError):  # ids that do not fit are another check's
            name = None
        name = name[:200] if isinstance(name, str) else None if name is None else shown(name)
        return f"{self}, sample {number}" + ("" if name is None else f" (id {name})")


class _Range(NamedTuple):
    """Lowest and highest value of each channel in a convention."""

    convention: str
    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of(cls, convention: str, mean: tuple[float, ...], std: tuple[float, ...]) -> "_Range":
        mean, std = checked("mean", mean, CHANNELS), checked("std", std, _SPREAD)
        if checked_convention(convention) == "clip":
            return cls(
                convention, *(tuple((x - m) / s for m, s in zip(mean, std, strict=True)) for x in (0.0, 1.0))
            )
        return cls(convention, ((0.0 if convention == "unit" else -1.0),) * 3, (1.0,) * 3)

    def offenders(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Which (B, 3) planes hold a bad value, and that value; NaN and infinities are bad."""
        low, high = torch.aminmax(images.detach().flatten(2), dim=2)  # (B, 3), NaN if any pixel is
        low, high = low.float(), high.float()
        slack = tuple(TOLERANCE * (b - a) for a, b in zip(self.low, self.high, strict=True))
        floor = channels(tuple(a - s for a, s in zip(self.low, slack, strict=True)), low).flatten()
        ceiling = channels(tuple(b + s for b, s in zip(self.high, slack, strict=True)), low).flatten()
        above = ~(high <= ceiling)  # written so that NaN is above
        return above | ~(low >= floor), torch.where(above, high, low)

    def complaint(self, place: _Place, first: int, value: float) -> DataError:
        """The error for ``value``, found at position ``first`` of the (B, 3) planes."""
        sample, channel = divmod(first, 3)
        where = f"{place.sample(sample)}, channel {channel}: value {value:.6g}"
        if value != value or abs(value) == float("inf"):
            return DataError(f"{where} is not finite: check the file and the transform that made it")
        ends = f"[{self.low[channel]:.4g}, {self.high[channel]:.4g}]"
        return DataError(
            f"{where} is outside {ends}, the range of {self.convention!r} pixels: {self._advice(value)}"
        )

    def _advice(self, value: float) -> str:
        if value > 3:  # beyond every convention
            return "divide the images by 255" + (
                " before normalising them" if self.convention == "clip" else ""
            )
        if self.convention == "clip":
            return "normalise by CLIP's mean and std, or give yours as recipe fields clip_mean and clip_std"
        if self.convention == "unit" and -1.1 <= value < 0:
            return "declare pixels='symmetric' for [-1, 1], pixels='clip' for images normalised for CLIP"
        return "declare pixels='clip' for images normalised for CLIP, or scale them"


@takes(what=string(), batch=NUMBER)
def check_shape(images: Any, what: str = "images", batch: int | None = None) -> None:
    """Raise ShapeError unless ``images`` is a floating tensor (B, 3, H, W) with B, H and W at least 1.

    Reads no value, so it costs nothing on any device.

    >>> check_shape(torch.zeros(2, 3, 8, 8))
    >>> check_shape(torch.zeros(3, 8, 8))
    Traceback (most recent call last):
    diva_rs.errors.ShapeError: images has shape (3, 8, 8), rank 4 (B, 3, H, W) needed: images[None] adds it
    """
    where = _Place(what, batch, None)
    if not isinstance(images, Tensor):
        raise ShapeError(f"{where} is a {type(images).__name__}, a tensor (B, 3, H, W) is needed")
    if not is_dense(images):
        raise ShapeError(f"{where} is {described(images)}, an ordinary tensor (B, 3, H, W) is needed")
    shape = tuple(images.shape)
    if len(shape) != 4:
        hint = ": images[None] adds it" if len(shape) == 3 else ""
        raise ShapeError(f"{where} has shape {shape}, rank 4 (B, 3, H, W) needed{hint}")
    if shape[0] == 0:
        raise ShapeError(f"{where} has shape {shape}: a batch of size 0; drop empty batches in the loader")
    if shape[1] != 3:
        hint = ": convert the files to RGB" if shape[1] in (1, 4) else ""
        if shape[3] == 3:
            hint = ": channels come first, images.permute(0, 3, 1, 2)"
        raise ShapeError(f"{where} has shape {shape}: {shape[1]} channels where 3 (RGB) are needed{hint}")
    if 0 in shape:
        raise ShapeError(f"{where} has shape {shape}: height and width must be at least 1")
    if not images.is_floating_point():
        hint = ": images.float() / 255 with pixels='unit'" if images.dtype == torch.uint8 else ""
        raise ShapeError(f"{where} has dtype {images.dtype}, a floating dtype is needed{hint}")


@takes(what=string(), batch=NUMBER)
def check_images(
    images: Tensor,
    convention: str,
    mean: tuple[float, ...] = OPENAI_MEAN,
    std: tuple[float, ...] = OPENAI_STD,
    what: str = "images",
    batch: int | None = None,
    ids: Ids | None = None,
) -> None:
    """Raise unless ``images`` is (B, 3, H, W), floating, finite and within the range of the declared
    convention.

    ShapeError for rank, channels, dtype or an empty batch; DataError for a NaN, an infinity, or a value
    outside the range by more than 5 % of it, naming batch, sample, id and value. Values are read on the CPU
    only: on any other device just the shape is checked, and `PixelGuard` looks at the values without waiting
    for them.

    >>> check_images(torch.full((1, 3, 4, 4), 255.0), "unit", batch=7)
    Traceback (most recent call last):
    diva_rs.errors.DataError: images of batch 7, sample 0, channel 0: value 255 is outside [0, 1], \
the range of 'unit' pixels: divide the images by 255
    """
    check_shape(images, what, batch)
    limits = _Range.of(convention, mean, std)
    if images.device.type != "cpu":
        return
    bad, value = limits.offenders(images)
    if bool(bad.any()):
        first = int(bad.flatten().to(torch.uint8).argmax())
        raise limits.complaint(_Place(what, batch, ids), first, float(value.flatten()[first]))


@takes(latents=tensor("(B, n, ...)"), what=string(), batch=NUMBER)
def check_finite(
    latents: Tensor,
    what: str = "latents",
    batch: int | None = None,
    ids: Ids | None = None,
) -> None:
    """Raise DataError if ``latents`` (B, ...) on the CPU hold a NaN or an infinity; other devices are not
    read.

    >>> check_finite(torch.tensor([[0.0], [float("nan")]]), batch=2)
    Traceback (most recent call last):
    diva_rs.errors.DataError: latents of batch 2, sample 1: not finite
    """
    if latents.device.type != "cpu":
        return
    finite = torch.isfinite(latents.detach().flatten(1)).all(1)
    if not bool(finite.all()):
        sample = int(finite.to(torch.uint8).argmin())
        raise DataError(f"{_Place(what, batch, ids).sample(sample)}: not finite")


class PixelGuard:
    """Checks batches on any device without a host read; ``report`` raises what was found.

    On the CPU ``check`` raises at once. Elsewhere it keeps the first offender's place in a tensor on the
    device, and ``report``, called when statistics are read anyway, costs the one copy; without it, every
    256th check reports.

    >>> guard = PixelGuard()
    >>> guard.check(torch.rand(2, 3, 8, 8), "unit", ids=[11, 12])
    >>> guard.report()
    """

    def __init__(self) -> None:
        self.batches = 0  # checked so far: the number of the next batch where the caller gives none
        self._flag: Tensor | None = (
            None  # (3,): entry of _seen (-1: nothing found), position in (B, 3), value
        )
        self._seen: list[tuple[_Range, _Place]] = []

    @takes(what=string(), batch=NUMBER)
    def check(
        self,
        images: Tensor,
        convention: str,
        mean: tuple[float, ...] = OPENAI_MEAN,
        std: tuple[float, ...] = OPENAI_STD,
        what: str = "images",
        ids: Ids | None = None,
        batch: int | None = None,
    ) -> None:
        """Check one batch as `check_images` does; ``batch`` is its number, by default counted from 0.

        Raises ShapeError at once on every device, DataError at once on the CPU.
        """
        number = self.batches if batch is None else batch
        self.batches = number + 1
        if not isinstance(images, Tensor) or images.device.type == "cpu":
            check_images(images, convention, mean, std, what, number, ids)
            return
        check_shape(images, what, number)
        self._watch(images, _Range.of(convention, mean, std), _Place(what, number, ids))

    def _watch(self, images: Tensor, limits: _Range, place: _Place) -> None:
        """Remember the first bad value on the device of ``images``."""
        bad, value = limits.offenders(images)
        first = bad.flatten().to(torch.uint8).argmax().reshape(1)  # the first of equals
        # gather, not value[first]: indexing by a tensor of one element reads it on the host.
        here = value.flatten().gather(0, first)
        found = torch.cat([value.new_full((1,), len(self._seen)), first.to(value.dtype), here])
        flag = (
            value.new_full((3,), -1) if self._flag is None else self._flag.to(value.device, non_blocking=True)
        )
        self._flag = torch.where((flag[0] < 0) & bad.any(), found, flag)
        self._seen.append((limits, place))
        if len(self._seen) >= PATIENCE:
            self.report()

    def report(self) -> None:
        """Raise DataError for the first bad value since the last report: the one host read of the guard."""
        flag, seen = self._flag, self._seen
        self._flag, self._seen = None, []
        if flag is None or flag.is_meta:
            return
        entry, first, value = flag.tolist()
        if entry >= 0:
            limits, place = seen[int(entry)]
            raise limits.complaint(place, int(first), value)
