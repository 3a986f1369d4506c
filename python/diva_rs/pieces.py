"""Everything a training step needs, put together once from (clip, unet, recipe).

`Trainer` and `FeedbackLoss` are two faces of these pieces: the student's tower, the teacher, the projector between
them, and the native step that joins the three.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diva_rs import _native
from diva_rs.clip import Tower, adapt
from diva_rs.data.batches import Batch, read_batch
from diva_rs.data.checks import PixelGuard, check_finite
from diva_rs.data.pixels import clip_input, vae_input
from diva_rs.diffusion import Teacher
from diva_rs.draws import DrawPlan, Draws, sample_keys
from diva_rs.errors import ConfigError, DeviceError, ShapeError
from diva_rs.recipe import Recipe

_STUDENT_DTYPE = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}


@dataclass(frozen=True)
class Inputs:
    """One batch, ready for the native step: CLIP's pixels and what the teacher denoises."""

    images: Tensor  # (B, 3, H, W), normalised for CLIP
    targets: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]  # latents, noise, timesteps, choice, text


class Pieces:
    """The student, the teacher, the bridge between them, and the native step over all three."""

    def __init__(self, clip: nn.Module, unet: Any, recipe: Recipe) -> None:
        if recipe.backend == "native":
            raise ConfigError('backend="native" is not part of this release: use "auto" or "torch"')
        self.recipe = recipe
        self.tower = adapt(clip)
        self.parameters = self.tower.named_parameters()
        self.device, self.dtype = self._student_home()
        self.teacher = Teacher.of(unet).to_precision(recipe.precision)
        self.projector = make_projector(recipe, self.tower.embed_dim, self.teacher.condition_width)
        self.projector.to(device=self.device, dtype=self.dtype)
        self.bridge = _bridge(self.tower, self.projector, recipe)
        self.guard = PixelGuard()
        self._plans: dict[tuple[int, ...], DrawPlan] = {}
        self._original = self._untouched() if recipe.anchor else None
        self.step = _native.Step(
            self._tokens_of(self.tower),
            self.teacher.denoise,
            self.bridge,
            self.teacher.schedule,
            loss=recipe.loss,
            draw_weights=list(recipe.weights()),
            min_snr=recipe.min_snr,
            anchor=recipe.anchor,
            original=self._original,
            micro_batch=recipe.micro_batch,
        )

    def inputs(self, batch: Any, ids: Any, epoch: int, draws: Draws | None, seen: int) -> Inputs:
        """Read a loader's item and make the step's tensors of it.

        Without ids, samples are numbered on from the ``seen`` ones of this rank; with ``draws``, nothing is drawn.
        """
        self.check_home()
        read = read_batch(batch, self.guard.batches)
        self._check_pixels(read)
        read = read.to(self.device, self.dtype)
        images = self._clip_pixels(read)
        latents = self._latents(read)
        if len(latents) != len(images):
            raise ShapeError(f"latents has {len(latents)} samples, the images have {len(images)}")
        if draws is None:
            keys = self._keys(read, ids, seen)
            draws = self._plan(tuple(latents.shape[1:])).draw(keys, epoch)
        timesteps, noise, tokens = draws.tensors(latents)
        choice = tokens if self.recipe.condition == "random" else None
        return Inputs(images, (latents, noise, timesteps, choice, self._text()))

    def tokens(self, images: Tensor) -> Tensor:
        """The student's tokens (B, 1+P, W), differentiable, in the recipe's precision."""
        return self._tokens_of(self.tower)(images)

    def bridge_parameters(self) -> list[nn.Parameter]:
        """What the native bridge takes part in training, in the order in which it returns gradients."""
        norm = self.tower.norm
        named: dict[str, Any] = {"proj": self.tower.proj}
        if norm is not None:
            named.update({"norm.weight": norm.weight, "norm.bias": norm.bias})
        named.update({f"projector.{name}": value for name, value in self.projector.named_parameters()})
        return [named[name] for name in self.bridge.param_names]

    @contextmanager
    def plain(self) -> Iterator[None]:
        """The modes of the native step, whatever the caller's: gradients on, autocast off (it sets its precisions itself)."""
        device = "cpu" if self.device.type == "meta" else self.device.type  # autocast knows no meta
        with torch.enable_grad(), torch.autocast(device, enabled=False):
            yield

    def check_home(self) -> None:
        """Raise DeviceError when the student moved to another device or dtype since it was adapted."""
        for name, parameter in self.parameters.items():
            if parameter.device != self.device or parameter.dtype != self.dtype:
                raise DeviceError(
                    f"{name} is now {parameter.dtype} on {parameter.device}, but was {self.dtype} on {self.device} when "
                    "this trainer was made: move the model first, then make the trainer"
                )

    def _student_home(self) -> tuple[torch.device, torch.dtype]:
        wanted = _STUDENT_DTYPE[self.recipe.precision]
        devices = {parameter.device for parameter in self.parameters.values()}
        if len(devices) != 1:
            raise DeviceError(f"CLIP's vision parameters lie on several devices ({devices}): move them to one")
        for name, parameter in self.parameters.items():
            if parameter.dtype != wanted:
                fix = "clip.double()" if wanted == torch.float64 else "clip.float()"
                also = ', or precision="fp64"' if parameter.dtype == torch.float64 else ""
                raise ConfigError(
                    f'{name} is {parameter.dtype}, precision="{self.recipe.precision}" trains {wanted} weights: call {fix}{also}'
                )
        return devices.pop(), wanted

    def _untouched(self) -> tuple[Any, Any]:
        tower = self.tower.frozen_copy()
        return self._tokens_of(tower), _bridge(tower, self.projector, self.recipe)

    def _tokens_of(self, tower: Tower) -> Any:
        if self.recipe.precision != "bf16":
            return tower.tokens

        def tokens(images: Tensor) -> Tensor:
            with torch.autocast(images.device.type, dtype=torch.bfloat16):
                return tower.tokens(images)

        return tokens

    def _check_pixels(self, batch: Batch) -> None:
        """Ranges are checked where the batch comes from: on the host before the copy, on a device without waiting."""
        number = self.guard.batches
        pixels, convention = batch.source(self.recipe.pixels)
        what = "pixel_values" if batch.images is None else "images"
        self.guard.check(pixels, convention, *self._normalisation(), what, batch.ids, number)
        if batch.latents is not None:
            check_finite(batch.latents, "latents", number, batch.ids)

    def _clip_pixels(self, batch: Batch) -> Tensor:
        ready, size = batch.pixel_values, self.tower.image_size
        if ready is None:
            assert batch.images is not None  # read_batch gives one of the two
            return clip_input(batch.images, self.recipe, size, *self._normalisation())
        if tuple(ready.shape[-2:]) != tuple(size):
            raise ShapeError(
                f"pixel_values is {tuple(ready.shape)}, {self.tower.name} takes (B, 3, {size[0]}, {size[1]}): resize "
                "them, or give `images` instead"
            )
        return ready

    def _latents(self, batch: Batch) -> Tensor:
        if batch.latents is not None:
            channels = self.teacher.latent_shape[0]
            if batch.latents.dim() != 4 or batch.latents.shape[1] != channels:
                raise ShapeError(f"latents is {tuple(batch.latents.shape)}, the teacher denoises (B, {channels}, h, w)")
            return batch.latents
        pixels, convention = batch.source(self.recipe.pixels)
        side = self.recipe.image_size
        size = (side, side) if side is not None else self.teacher.image_size
        return self.teacher.encode(vae_input(pixels, self.recipe, size, *self._normalisation(), convention))

    def _normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.recipe.clip_mean or self.tower.mean, self.recipe.clip_std or self.tower.std

    def _keys(self, batch: Batch, ids: Any, seen: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
        ids = batch.ids if ids is None else ids
        count = len(batch)
        if ids is None:
            # The ranks' batches stand side by side in one numbering: no two ranks share a draw.
            rank, world = rank_and_world()
            first = seen * world + rank * count
            return np.arange(first, first + count, dtype=np.uint64)
        keys = sample_keys(ids)
        if len(keys) != count:
            raise ShapeError(f"{len(keys)} ids for a batch of {count} samples: one id per sample")
        return keys

    def _plan(self, latent_shape: tuple[int, ...]) -> DrawPlan:
        if latent_shape not in self._plans:
            recipe, patches = self.recipe, self.tower.patches
            drawn = recipe.condition == "random"
            self._plans[latent_shape] = DrawPlan(
                seed=recipe.seed,
                draws=recipe.draws,
                latent_shape=latent_shape,
                patches=patches,
                choose=recipe.chosen(patches) if drawn and not recipe.bernoulli else None,
                density=recipe.density if drawn and recipe.bernoulli else None,
                replacement=recipe.replacement,
                timesteps=recipe.timesteps,
                timestep_range=recipe.timestep_range or (0, len(self.teacher.schedule)),
                logit_mean=recipe.logit_mean,
                logit_std=recipe.logit_std,
            )
        return self._plans[latent_shape]

    def _text(self) -> Tensor:
        return self.teacher.text(self.recipe.prompt).to(device=self.device, dtype=self.dtype)


def make_projector(recipe: Recipe, width: int, condition_width: int) -> nn.Module:
    """The trained map from CLIP's embedding (width) to the condition (condition_width), seeded by the recipe.

    "linear" is a Linear, as in DIVA; "mlp" is LayerNorm, Linear, GELU, Linear, as in GenHancer (ICCV 2025).

    >>> make_projector(Recipe(projector="linear"), 768, 1024)
    Linear(in_features=768, out_features=1024, bias=True)
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)  # the CPU's alone: fork_rng restores no other here
        if recipe.projector == "linear":
            return nn.Linear(width, condition_width)
        return nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, condition_width),
            nn.GELU(),
            nn.Linear(condition_width, condition_width),
        )


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) outside torch.distributed.

    >>> rank_and_world()
    (0, 1)
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _bridge(tower: Tower, projector: nn.Module, recipe: Recipe) -> _native.Bridge:
    norm = None if tower.norm is None else (tower.norm.weight, tower.norm.bias, tower.norm.eps)
    proj = None if tower.proj is None else (tower.proj, tower.proj_transposed)
    weights = dict(projector.named_parameters())
    return _native.Bridge(norm, proj, weights, recipe.condition, recipe.window, recipe.text)
