"""From what a loader yields to the tensors of a step: CLIP's pixels, latents, draws and text."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import diva_rs._native as _native
from diva_rs._base.world import rank_and_world
from diva_rs.clip import Tower
from diva_rs.data.augment import contrast_views
from diva_rs.data.batches import Batch, read_batch
from diva_rs.data.checks import PixelGuard, check_finite
from diva_rs.data.pixels import native_pixels
from diva_rs.diffusion import Teacher
from diva_rs.errors import ConfigError, DeviceError, ShapeError, shown
from diva_rs.recipes.recipe import Recipe
from diva_rs.step.draws import Draws, sample_keys
from diva_rs.step.query import QueryReader

Keys = np.ndarray[Any, np.dtype[np.uint64]]

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_EPOCHS = 1 << 63
_log = logging.getLogger("diva_rs")


@dataclass(frozen=True)
class Inputs:
    """The tensors of a step: CLIP's pixels and what the teacher denoises."""

    images: Tensor  # (B | 2B, 3, H, W), normalised for CLIP; augmented views follow
    # latents, noise, timesteps, choice, text, noise at a pooled condition; None: there is no denoiser
    targets: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor | None] | None
    batch: _native.Batch  # what they were made of


class Reader:
    """Reads what a loader yields for one tower, teacher and recipe. Tensors are made on CLIP's device and in
    its dtype, by the native core.

    Raises ConfigError at once where the recipe does not fit the models.
    """

    def __init__(
        self, tower: Tower, teacher: Teacher | None, recipe: Recipe, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.tower, self.recipe = tower, recipe
        self.device, self.dtype = device, dtype
        self.guard = PixelGuard()
        self.augments = False  # whether the loss needs an augmented view of each image
        self.wide = False  # whether bf16 matrices of a native VAE are multiplied in float32
        self._warned = False
        self._home = torch.empty((), device=device, dtype=dtype)
        self.query = None if teacher is None else QueryReader(teacher, recipe, tower.patches, self._home)
        pixels = native_pixels(recipe, *self._normalisation())
        self.native = _native.Reader(pixels, tower.image_size, self._home)

    def batch(self, item: Any, ids: Any, epoch: int, draws: Draws | None, seen: int) -> _native.Batch:
        """Read and check a loader's item.

        Without ids, samples are numbered on from the ``seen`` ones of this rank; with ``draws``, nothing is
        drawn.
        """
        batch = self._checked(item, ids)
        keys = _keys(batch, seen)
        self._check_ready(batch)
        views = self._views(batch, keys, epoch) if self.augments else None
        pinned = replace(batch, augmented=views).pinned(self.device)
        if draws is not None and self.query is None:
            raise ConfigError("draws are given, but there is no diffusion model that takes them")
        return _native.Batch(
            keys=keys,
            epoch=epoch,
            seed=self.recipe.seed,
            images=pinned.images,
            pixel_values=pinned.pixel_values,
            augmented=pinned.augmented,
            **({} if self.query is None else self.query.of(pinned, draws)),
        )

    def read(self, item: Any, ids: Any, epoch: int, draws: Draws | None, seen: int) -> Inputs:
        """The tensors of a step: `batch`, and everything that the native step does before the networks."""
        return self.made(self.batch(item, ids, epoch, draws, seen))

    def made(self, batch: _native.Batch) -> Inputs:
        """The tensors of a step, of what `batch` gave."""
        return Inputs(*self.native.read(batch, self.wide), batch)

    def _checked(self, item: Any, ids: Any) -> Batch:
        """The item, checked where it comes from: on the host before the copy, on a device without waiting."""
        number = self.guard.batches
        batch = read_batch(item, number)
        if ids is not None:
            listed = isinstance(ids, (Sequence, Tensor, np.ndarray)) or not isinstance(ids, Iterable)
            batch = read_batch(replace(batch, ids=ids if listed else list(iter(ids))), number)
        declared = self.recipe.pixels if batch.images is not None else "clip"
        pixels = {
            "images": (batch.images, self.recipe.pixels),
            "augmented": (batch.augmented, declared),
            "pixel_values": (batch.pixel_values, "clip"),
            "latents": (batch.latents, ""),
        }
        for what, (tensor, convention) in pixels.items():
            if tensor is None:
                continue
            if tensor.layout != torch.strided or tensor.dtype not in _DTYPES:
                raise ShapeError(
                    f"{what} of batch {number} is {tensor.dtype} in layout {tensor.layout}: give an ordinary "
                    "tensor of float32, float64, float16 or bfloat16"
                )
            if tensor.is_meta and self.device.type != "meta":
                raise DeviceError(f"{what} of batch {number} is on the meta device, which holds no values")
            if convention:
                self.guard.check(tensor, convention, *self._normalisation(), what, batch.ids, number)
            else:
                # As the step will see it: what float64 holds may be infinite in float32.
                check_finite(tensor.to(self.dtype), what, number, batch.ids)
        return batch

    def _views(self, batch: Batch, keys: Keys, epoch: int) -> Tensor:
        """The augmented views (B, 3, h, w), ready for CLIP: the loader's, or made of its images."""
        if len(batch) == 1 and not self._warned:
            self._warned = True
            _log.warning("contrast has no negatives in a batch of one image: give larger batches")
        pixels, convention = batch.source(self.recipe.pixels)
        size, official = self.tower.image_size, self.recipe.contrast_view == "official"
        native = native_pixels(self.recipe, *self._normalisation(), convention)
        if batch.augmented is not None:
            return native.clip_input(batch.augmented, size)
        unit = native_pixels(self.recipe, *self._normalisation(), "unit")
        # The colour changes clamp to [0, 1], also what was normalised for CLIP already.
        made = native.clip_input(pixels, size) if official else native.to_unit(pixels)
        views = contrast_views(made, keys, self.recipe.seed, epoch, size)
        return views if official else unit.clip_input(views, size)

    def _check_ready(self, batch: Batch) -> None:
        ready, size = batch.pixel_values, self.tower.image_size
        if ready is not None and tuple(ready.shape[-2:]) != tuple(size):
            raise ShapeError(
                f"pixel_values is {tuple(ready.shape)}, {self.tower.name} takes (B, 3, {size[0]}, "
                f"{size[1]}): resize them, or give `images` instead"
            )

    def _normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.recipe.clip_mean or self.tower.mean, self.recipe.clip_std or self.tower.std


def checked_epoch(epoch: Any) -> int:
    """The number of a pass over the data.

    Raises:
        ConfigError: it is no whole number from 0 to 2**63 - 1.
    """
    whole = isinstance(epoch, (int, np.integer)) and not isinstance(epoch, bool)
    if not whole or not 0 <= epoch < _EPOCHS:
        raise ConfigError(f"epoch is {shown(epoch)}: a whole number from 0 to 2**63 - 1 is needed")
    return int(epoch)


def _keys(batch: Batch, seen: int) -> Keys:
    """The key of each sample's draws: its id, or its number within the epoch."""
    if batch.ids is not None:
        return sample_keys(batch.ids)
    # The ranks take turns, as in torch's DistributedSampler: none share a draw, however large their batches.
    rank, world = rank_and_world()
    numbers = np.arange(seen, seen + len(batch), dtype=np.uint64)
    return numbers * np.uint64(world) + np.uint64(rank)
