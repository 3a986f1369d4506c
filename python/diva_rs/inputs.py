"""From what a loader yields to the tensors of a step: CLIP's pixels, latents, draws and text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diva_rs import _native
from diva_rs.clip import Tower
from diva_rs.data.batches import Batch, read_batch
from diva_rs.data.checks import PixelGuard, check_finite
from diva_rs.data.loader import rank_and_world
from diva_rs.data.pixels import clip_input, vae_input
from diva_rs.diffusion import Teacher
from diva_rs.draws import DrawPlan, Draws, sample_keys
from diva_rs.errors import ConfigError, DataError, DeviceError, ShapeError
from diva_rs.native.choose import Encoder
from diva_rs.recipe import Recipe

Keys = np.ndarray[Any, np.dtype[np.uint64]]

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_HALF = 1 << 63  # epochs end here; the other half of the numbers keys posterior samples


@dataclass(frozen=True)
class Inputs:
    """One batch, ready for the native step: CLIP's pixels and what the teacher denoises."""

    images: Tensor  # (B, 3, H, W), normalised for CLIP
    targets: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]  # latents, noise, timesteps, choice, text


class Reader:
    """Makes a step's tensors, on CLIP's device and in its dtype, for one tower, teacher and recipe.

    Raises ConfigError at once where the recipe does not fit the models.
    """

    def __init__(
        self, tower: Tower, teacher: Teacher, recipe: Recipe, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.tower, self.teacher, self.recipe = tower, teacher, recipe
        self.device, self.dtype = device, dtype
        self.guard = PixelGuard()
        self.encode = Encoder(teacher, recipe)
        self.chosen = recipe.chosen(tower.patches)  # k, where the condition is random
        self._plans: dict[tuple[int, ...], DrawPlan] = {}
        steps = len(teacher.schedule)
        self._range = recipe.timestep_range or (0, steps)
        if self._range[1] > steps:
            raise ConfigError(
                f"timestep_range={recipe.timestep_range} ends beyond the teacher's {steps} timesteps: "
                f"end it at {steps} or before"
            )

    def read(self, item: Any, ids: Any, epoch: int, draws: Draws | None, seen: int) -> Inputs:
        """Read a loader's item and make the step's tensors of it.

        Without ids, samples are numbered on from the ``seen`` ones of this rank; with ``draws``, nothing is
        drawn.
        """
        with torch.no_grad():
            batch = self._batch(item, ids)
            keys = _keys(batch, seen)
            batch = batch.to(self.device, self.dtype)
            images = self.clip_pixels(batch)
            latents = self._latents(batch, keys, epoch)
            if draws is not None:
                self._check_draws(draws, latents)
                check_finite(draws.tensors(latents)[1], "draws.noise")
            else:
                draws = self._plan(tuple(latents.shape[1:])).draw(keys, epoch)
            timesteps, noise, tokens = draws.tensors(latents)
            choice = tokens if self.recipe.condition == "random" else None
            text = self._text(len(latents))
            return Inputs(_own(images), (_own(latents), noise.detach(), timesteps, choice, text))

    def clip_pixels(self, batch: Batch) -> Tensor:
        """CLIP's input (B, 3, H, W): ``pixel_values`` as they are, or made from ``images``."""
        ready, size = batch.pixel_values, self.tower.image_size
        if ready is None:
            assert batch.images is not None  # read_batch gives one of the two
            return clip_input(batch.images, self.recipe, size, *self._normalisation())
        if tuple(ready.shape[-2:]) != tuple(size):
            raise ShapeError(
                f"pixel_values is {tuple(ready.shape)}, {self.tower.name} takes (B, 3, {size[0]}, "
                f"{size[1]}): resize them, or give `images` instead"
            )
        return ready

    def _batch(self, item: Any, ids: Any) -> Batch:
        """The item, checked where it comes from: on the host before the copy, on a device without waiting."""
        number = self.guard.batches
        batch = read_batch(item, number)
        if ids is not None:
            listed = isinstance(ids, (Sequence, Tensor, np.ndarray)) or not isinstance(ids, Iterable)
            batch = read_batch(replace(batch, ids=ids if listed else list(ids)), number)
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

    def _latents(self, batch: Batch, keys: Keys, epoch: int) -> Tensor:
        if batch.latents is not None:
            channels = self.teacher.latent_shape[0]
            if batch.latents.shape[1] != channels:
                shape = tuple(batch.latents.shape)
                raise ShapeError(f"latents is {shape}, the teacher denoises (B, {channels}, h, w)")
            return batch.latents
        pixels, convention = batch.source(self.recipe.pixels)
        side = self.recipe.image_size
        size = (side, side) if side is not None else self.teacher.image_size
        ready = vae_input(pixels, self.recipe, size, *self._normalisation(), convention)
        seeds = None
        if self.recipe.latent == "sample":
            # No image augmentation shares these seeds.
            seeds = [_native.augment_seed(self.recipe.seed, int(key), epoch + _HALF) for key in keys]
        return self.encode(ready, seeds)

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

    def _check_draws(self, draws: Any, latents: Tensor) -> None:
        """Whether explicit draws fit; their values are looked at where they are on the host."""
        if not isinstance(draws, Draws):
            raise ConfigError(
                f"draws is a {type(draws).__name__}: give diva_rs.Draws(timesteps, noise, tokens), or what "
                "diva_rs.draw returns"
            )
        lead = (len(latents), self.recipe.draws)
        wanted = {"timesteps": lead, "noise": (*lead, *latents.shape[1:])}
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
    if not whole or not 0 <= epoch < _HALF:
        raise ConfigError(f"epoch is {epoch!r}: a whole number from 0 to 2**63 - 1 is needed")
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


def _own(tensor: Tensor) -> Tensor:
    """Outside the caller's graph; what was made under inference_mode cannot be saved for a backward pass."""
    return tensor.clone() if tensor.is_inference() else tensor.detach()
