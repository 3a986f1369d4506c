"""From what a loader yields to the tensors of a step: CLIP's pixels, latents, draws and text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import diva_rs._native as _native
from diva_rs._base.world import rank_and_world
from diva_rs.clip import Tower
from diva_rs.data.batches import Batch, read_batch
from diva_rs.data.checks import PixelGuard, check_finite
from diva_rs.data.pixels import native_pixels
from diva_rs.diffusion import Teacher
from diva_rs.errors import ConfigError, DataError, DeviceError, ShapeError, shown
from diva_rs.native.choose import Encoder
from diva_rs.recipes.recipe import Recipe
from diva_rs.step.draws import DrawPlan, Draws, sample_keys

Keys = np.ndarray[Any, np.dtype[np.uint64]]

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_EPOCHS = 1 << 63


@dataclass(frozen=True)
class Inputs:
    """The tensors of a step: CLIP's pixels and what the teacher denoises."""

    images: Tensor  # (B, 3, H, W), normalised for CLIP
    targets: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]  # latents, noise, timesteps, choice, text
    batch: _native.Batch  # what they were made of


class Reader:
    """Reads what a loader yields for one tower, teacher and recipe. Tensors are made on CLIP's device and in
    its dtype, by the native core.

    Raises ConfigError at once where the recipe does not fit the models.
    """

    def __init__(
        self, tower: Tower, teacher: Teacher, recipe: Recipe, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.tower, self.teacher, self.recipe = tower, teacher, recipe
        self.device, self.dtype = device, dtype
        self.guard = PixelGuard()
        self.encoder = Encoder(teacher, recipe)
        self.chosen = recipe.chosen(tower.patches)  # k, where the condition is random
        self._plans: dict[tuple[int, ...], DrawPlan] = {}
        steps = len(teacher.schedule)
        self._range = recipe.timestep_range or (0, steps)
        if self._range[1] > steps:
            raise ConfigError(
                f"timestep_range={recipe.timestep_range} ends beyond the teacher's {steps} timesteps: "
                f"end it at {steps} or before"
            )
        self._home = torch.empty((), device=device, dtype=dtype)
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
        size, shape, encoder = self._latents(batch)
        sampled = None
        if self.recipe.latent == "sample" and batch.latents is None:
            if encoder is None:
                raise ConfigError(
                    "this teacher works on pixels, which have no posterior to draw from: use latent='mean'"
                )
            sampled = shape
        pinned = batch.pinned(self.device)
        return _native.Batch(
            keys=keys,
            text=self._text(len(batch)),
            drawn=self._plan(shape).native if draws is None else self._given(draws, len(batch), shape),
            epoch=epoch,
            seed=self.recipe.seed,
            images=pinned.images,
            pixel_values=pinned.pixel_values,
            latents=pinned.latents,
            size=size,
            encoder=encoder,
            sampled=sampled,
        )

    def read(self, item: Any, ids: Any, epoch: int, draws: Draws | None, seen: int) -> Inputs:
        """The tensors of a step: `batch`, and everything that the native step does before the networks."""
        return self.made(self.batch(item, ids, epoch, draws, seen))

    def made(self, batch: _native.Batch) -> Inputs:
        """The tensors of a step, of what `batch` gave."""
        return Inputs(*self.native.read(batch), batch)

    def _checked(self, item: Any, ids: Any) -> Batch:
        """The item, checked where it comes from: on the host before the copy, on a device without waiting."""
        number = self.guard.batches
        batch = read_batch(item, number)
        if ids is not None:
            listed = isinstance(ids, (Sequence, Tensor, np.ndarray)) or not isinstance(ids, Iterable)
            batch = read_batch(replace(batch, ids=ids if listed else list(iter(ids))), number)
        pixels = {
            "images": (batch.images, self.recipe.pixels),
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

    def _check_ready(self, batch: Batch) -> None:
        ready, size = batch.pixel_values, self.tower.image_size
        if ready is not None and tuple(ready.shape[-2:]) != tuple(size):
            raise ShapeError(
                f"pixel_values is {tuple(ready.shape)}, {self.tower.name} takes (B, 3, {size[0]}, "
                f"{size[1]}): resize them, or give `images` instead"
            )

    def _latents(self, batch: Batch) -> tuple[tuple[int, int], tuple[int, ...], Any]:
        """The size of the images that latents are made from, the shape of a latent, and what makes it."""
        if batch.latents is not None:
            channels, shape = self.teacher.latent_shape[0], tuple(batch.latents.shape)
            if shape[1] != channels:
                raise ShapeError(f"latents is {shape}, the teacher denoises (B, {channels}, h, w)")
            return (0, 0), shape[1:], None
        side = self.recipe.image_size
        size = (side, side) if side is not None else self.teacher.image_size
        return size, self.teacher.latents_of(size), self.encoder.network()

    def _normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.recipe.clip_mean or self.tower.mean, self.recipe.clip_std or self.tower.std

    def _plan(self, latent_shape: tuple[int, ...]) -> DrawPlan:
        if latent_shape not in self._plans:
            recipe = self.recipe
            drawn = recipe.condition == "random"
            self._plans[latent_shape] = DrawPlan(
                seed=recipe.seed,
                draws=recipe.draws,
                latent_shape=latent_shape,
                patches=self.tower.patches,
                choose=self.chosen if drawn and not recipe.bernoulli else None,
                density=recipe.density if drawn and recipe.bernoulli else None,
                replacement=recipe.replacement,
                timesteps=recipe.timesteps,
                timestep_range=self._range,
                logit_mean=recipe.logit_mean,
                logit_std=recipe.logit_std,
            )
        return self._plans[latent_shape]

    def _given(self, draws: Any, batch: int, latent: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Explicit draws as tensors, if they fit; their values are looked at where they are on the host."""
        if not isinstance(draws, Draws):
            raise ConfigError(
                f"draws is a {type(draws).__name__}: give diva_rs.Draws(timesteps, noise, tokens), or what "
                "diva_rs.draw returns"
            )
        lead = (batch, self.recipe.draws)
        wanted = {"timesteps": lead, "noise": (*lead, *latent)}
        if self.recipe.condition == "random":
            wanted["tokens"] = (*lead, self.chosen)
        for name, shape in wanted.items():
            found = tuple(getattr(draws, name).shape)
            if found != shape:
                raise ShapeError(
                    f"draws.{name} is {found}, this batch and recipe need {shape}: B samples, N = "
                    f"recipe.draws{', k chosen patches' if name == 'tokens' else ''}"
                )
        _check_values("timesteps", draws.timesteps, 0, len(self.teacher.schedule))
        if "tokens" in wanted:
            _check_values("tokens", draws.tokens, -1, self.tower.patches)
        timesteps, noise, tokens = draws.tensors(self._home)
        check_finite(noise, "draws.noise")
        return timesteps, noise.detach(), tokens if "tokens" in wanted else None

    def _text(self, batch: int) -> Tensor:
        text = self.teacher.text(self.recipe.prompt)
        if len(text) not in (1, batch):
            raise ShapeError(
                f"text_condition is {tuple(text.shape)}, the batch has {batch} samples: give one text for "
                "all, or batches of that size (drop_last=True)"
            )
        return text.to(device=self.device, dtype=self.dtype)


def checked_epoch(epoch: Any) -> int:
    """The number of a pass over the data.

    Raises:
        ConfigError: it is no whole number from 0 to 2**63 - 1.

    >>> checked_epoch(3)
    3
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


def _check_values(name: str, values: Any, low: int, high: int) -> None:
    if isinstance(values, Tensor) and values.device.type != "cpu":
        return
    values = np.asarray(values)
    if values.size and (int(values.min()) < low or int(values.max()) >= high):
        raise DataError(
            f"draws.{name} reaches from {values.min()} to {values.max()}, valid are {low} to {high - 1}"
        )
