"""Checks of images against their declared convention."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diva_rs._base.tensors import described, is_dense
from diva_rs.data.pixels import CONVENTIONS, OPENAI_MEAN, OPENAI_STD, Three
from diva_rs.errors import ConfigError, DataError, ShapeError, shown

# Share of the declared range by which a value may lie outside it: a bicubic resize overshoots at hard edges,
# while a wrong convention is off by far more.
TOLERANCE = 0.05
PATIENCE = 256  # batches after which a guard reports even if its caller never does

Ids = Sequence[int | str] | Tensor | np.ndarray[Any, Any]


class Place(NamedTuple):
    """Where a value was found, for messages."""

    what: str
    batch: int | None
    ids: Ids | None = None

    def __str__(self) -> str:
        return self.what if self.batch is None else f"{self.what} of batch {self.batch}"

    def sample(self, number: int) -> str:
        if self.ids is None:
            return f"{self}, sample {number}"
        ids = self.ids.tolist() if isinstance(self.ids, Tensor) else self.ids
        return f"{self}, sample {number} (id {str(ids[number])[:200]})"


class _Range(NamedTuple):
    """Lowest and highest value of each channel in a convention."""

    convention: str
    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of(cls, convention: str, mean: Three, std: Three) -> "_Range":
        if convention not in CONVENTIONS:
            names = ", ".join(map(repr, CONVENTIONS))
            raise ConfigError(f"pixels={shown(convention)} is unknown: one of {names}")
        if convention == "clip":
            pairs = list(zip(mean, std, strict=True))
            return cls(convention, tuple(-m / s for m, s in pairs), tuple((1 - m) / s for m, s in pairs))
        return cls(convention, (-1.0 if convention == "symmetric" else 0.0,) * 3, (1.0,) * 3)

    def offenders(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Which (B, 3) planes hold a bad value, and that value; NaN and infinities are bad."""
        low, high = torch.aminmax(images.detach().flatten(2), dim=2)  # (B, 3), NaN if any pixel is
        low, high, ranges = low.float(), high.float(), list(zip(self.low, self.high, strict=True))
        floor = _filled([a - TOLERANCE * (b - a) for a, b in ranges], low)
        ceiling = _filled([b + TOLERANCE * (b - a) for a, b in ranges], low)
        above = ~(high <= ceiling)  # written so that NaN is above
        return above | ~(low >= floor), torch.where(above, high, low)

    def error(self, place: Place, first: int, value: float) -> DataError:
        """The error for ``value``, found at position ``first`` of the (B, 3) planes."""
        sample, channel = divmod(first, 3)
        where = f"{place.sample(sample)}, channel {channel}: value {value:.6g}"
        if value != value or abs(value) == float("inf"):
            return DataError(f"{where} is not finite: check the file and the transform that made it")
        ends = f"[{self.low[channel]:.4g}, {self.high[channel]:.4g}]"
        outside = f"is outside {ends}, the range of {self.convention!r} pixels"
        return DataError(f"{where} {outside}: {self._advice(value)}")

    def _advice(self, value: float) -> str:
        clip = self.convention == "clip"
        if value > 3:  # beyond every convention
            return f"divide the images by 255{' before normalising them' if clip else ''}"
        if clip:
            return "normalise by CLIP's mean and std, or give yours as recipe fields clip_mean and clip_std"
        if self.convention == "unit" and -1.1 <= value < 0:
            return "declare pixels='symmetric' for [-1, 1], pixels='clip' for images normalised for CLIP"
        return "declare pixels='clip' for images normalised for CLIP, or scale them"


def _filled(values: Sequence[float], like: Tensor) -> Tensor:
    """Constants (3,), filled on the device of ``like``: ``torch.tensor`` would copy them and wait."""
    return torch.cat([like.new_full((1,), value) for value in values])


def check_shape(images: Any, what: str = "images", batch: int | None = None) -> None:
    """Raise ShapeError unless ``images`` is a floating tensor (B, 3, H, W), not empty. Reads no value.

    >>> check_shape(torch.zeros(2, 3, 8, 8))
    >>> check_shape(torch.zeros(3, 8, 8))
    Traceback (most recent call last):
    diva_rs.errors.ShapeError: images has shape (3, 8, 8), (B, 3, H, W) with no empty dimension is needed: ...
    """
    where = Place(what, batch)
    if not is_dense(images):
        raise ShapeError(f"{where} is {described(images)}, a dense tensor (B, 3, H, W) is needed")
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != 3 or 0 in shape:
        hints = {
            ": images[None] adds B": len(shape) == 3,
            ": drop empty batches in the loader": shape[:1] == (0,),
            ": channels come first, images.permute(0, 3, 1, 2)": len(shape) == 4 and shape[3] == 3,
            ": convert the files to RGB": len(shape) == 4 and shape[1] in (1, 4),
        }
        hint = next((text for text, fits in hints.items() if fits), "")
        raise ShapeError(f"{where} has shape {shape}, (B, 3, H, W) with no empty dimension is needed{hint}")
    if not images.is_floating_point():
        hint = ": images.float() / 255 with pixels='unit'" if images.dtype == torch.uint8 else ""
        raise ShapeError(f"{where} has dtype {images.dtype}, a floating dtype is needed{hint}")


def check_images(
    images: Tensor,
    convention: str,
    mean: Three = OPENAI_MEAN,
    std: Three = OPENAI_STD,
    what: str = "images",
    batch: int | None = None,
    ids: Ids | None = None,
) -> None:
    """Raise ShapeError as `check_shape`, and DataError for a value outside the range of the convention.

    A value may lie outside by 5 % of the range; NaN and infinities are outside. Values are read on the CPU
    only; `PixelGuard` checks them on other devices.

    >>> check_images(torch.full((1, 3, 4, 4), 255.0), "unit", batch=7)
    Traceback (most recent call last):
    diva_rs.errors.DataError: images of batch 7, sample 0, channel 0: value 255 is outside [0, 1], \
the range of 'unit' pixels: divide the images by 255
    """
    check_shape(images, what, batch)
    limits, guard = _Range.of(convention, mean, std), PixelGuard()
    if images.device.type == "cpu":
        guard._keep(images, limits, Place(what, batch, ids))
        guard.report()


def check_finite(
    latents: Tensor, what: str = "latents", batch: int | None = None, ids: Ids | None = None
) -> None:
    """Raise DataError if ``latents`` (B, ...) on the CPU hold a NaN or an infinity.

    >>> check_finite(torch.tensor([[0.0], [float("nan")]]), batch=2)
    Traceback (most recent call last):
    diva_rs.errors.DataError: latents of batch 2, sample 1: not finite
    """
    if latents.device.type == "cpu":
        finite = torch.isfinite(latents.detach().flatten(1)).all(1).tolist()
        if not all(finite):
            raise DataError(f"{Place(what, batch, ids).sample(finite.index(False))}: not finite")


class PixelGuard:
    """Checks batches: on the CPU ``check`` raises at once. Elsewhere it keeps the first bad value on the
    device, without waiting, and ``report``, as well as every 256th check, raises for it.

    >>> guard = PixelGuard()
    >>> guard.check(torch.rand(2, 3, 8, 8), "unit", ids=[11, 12])
    >>> guard.report()
    """

    def __init__(self) -> None:
        self.batches = 0  # checked so far: the number of the next batch where the caller gives none
        # (3,): entry of _seen (-1: nothing found), position in (B, 3), value
        self._found: Tensor | None = None
        self._seen: list[tuple[_Range, Place]] = []

    def check(
        self,
        images: Tensor,
        convention: str,
        mean: Three = OPENAI_MEAN,
        std: Three = OPENAI_STD,
        what: str = "images",
        ids: Ids | None = None,
        batch: int | None = None,
    ) -> None:
        """Check one batch as `check_images` does; ``batch`` is its number, by default counted from 0."""
        number = self.batches if batch is None else batch
        self.batches = number + 1
        check_images(images, convention, mean, std, what, number, ids)
        if images.device.type != "cpu":
            self._keep(images, _Range.of(convention, mean, std), Place(what, number, ids))

    def _keep(self, images: Tensor, limits: _Range, place: Place) -> None:
        """Keep the first bad value on the device of ``images``."""
        bad, value = limits.offenders(images)
        first = bad.flatten().to(torch.uint8).argmax().reshape(1)  # the first of equals
        # gather, not value[first]: indexing by a tensor of one element reads it on the host.
        here = value.flatten().gather(0, first)
        found = torch.cat([value.new_full((1,), len(self._seen)), first.to(value.dtype), here])
        before = value.new_full((3,), -1) if self._found is None else self._found
        before = before.to(value.device, non_blocking=True)
        self._found = torch.where((before[0] < 0) & bad.any(), found, before)
        self._seen.append((limits, place))
        if len(self._seen) >= PATIENCE:
            self.report()

    def report(self) -> None:
        """Raise DataError for the first bad value since the last report: the guard's one host read."""
        found, seen = self._found, self._seen
        self._found, self._seen = None, []
        if found is None or found.is_meta:
            return
        entry, first, value = found.tolist()
        if entry >= 0:
            limits, place = seen[int(entry)]
            raise limits.error(place, int(first), value)
