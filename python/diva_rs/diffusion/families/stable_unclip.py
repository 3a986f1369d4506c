"""Stable unCLIP: an image embedding enters through the time embedding, text is cross-attended."""

from typing import Any

import torch
from torch import Tensor, nn

from diva_rs._base.optional import require
from diva_rs.diffusion.condition import Condition, Slots
from diva_rs.diffusion.families.family import Context, NativePlan
from diva_rs.diffusion.families.unet import UNet
from diva_rs.diffusion.frozen import moved
from diva_rs.errors import ConfigError, shown


class StableUnclip(UNet):
    """The condition stands in the place of the image embedding.

    The published models read the embedding noised at a level, and behind it an embedding of this level, as
    wide as itself: what diffusers' pipeline makes of the condition at ``noise_level``. A training step draws
    the noise for each draw; `predict` by itself adds none, which is the mean. The level is 0 where the
    pipeline has the parts that noise image embeddings. None leaves all of the class embedding to the
    condition.
    """

    text_joins = False
    options = UNet.options | {"noise_level"}

    def __init__(
        self, model: nn.Module, context: Context, noise_level: int | None = None, **options: Any
    ) -> None:
        super().__init__(model, context, **options)
        width = int(self.model.config.projection_class_embeddings_input_dim)
        scheduler = context.part("image_noising_scheduler")
        if noise_level is None and scheduler is not None:
            noise_level = 0
        self._affine: list[Tensor] = []
        if noise_level is not None:
            if width % 2:
                raise ConfigError(f"noise_level: this UNet's class embedding is {width} wide, no even number")
            width //= 2
            normalizer = context.part("image_normalizer")
            self.pooled_noise, *self._affine = _noised(noise_level, width, scheduler, normalizer)
        self.slots = Slots(pooled=width)
        self._here: tuple[Tensor, ...] = ()  # text, scale and shift where the model is

    @classmethod
    def matches(cls, model: Any) -> bool:
        return super().matches(model) and model.config.class_embed_type is not None

    @property
    def entry(self) -> str:
        return f"class projection, {self.slots.width} wide (text by cross-attention, {self.text_width} wide)"

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        if not self._here:
            parts = (self._text(noisy), *self._affine)
            self._here = tuple(moved(part, noisy.device, noisy.dtype) for part in parts)
        (text, *affine), labels = self._here, condition.pooled
        if affine and labels is not None:
            scale, shift = affine
            labels = nn.functional.pad(labels * scale, (0, shift.shape[1] - scale.shape[1])) + shift
        return self.call(noisy, timesteps, text.expand(len(noisy), -1, -1), labels)

    def native(self) -> NativePlan | str:
        plan = super().native()
        if isinstance(plan, str):
            return plan
        fixed = {"encoder_hidden_states": self._text(next(self.model.parameters()))}
        fixed |= dict(zip(("class_scale", "class_shift"), self._affine, strict=False))
        return NativePlan(plan.kind, plan.fields, {**plan.fixed, **fixed})

    def _text(self, like: Tensor) -> Tensor:
        assert self.text_width is not None
        return moved(self.context.text(self.text_width), like.device, like.dtype)


def _noised(level: Any, width: int, scheduler: Any, normalizer: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The deviation (V,) of an embedding's noise, and the scale (1, V) and shift (1, 2 V) that follow.

    diffusers StableUnCLIPImg2ImgPipeline.noise_image_embeddings standardises, noises, undoes the former, and
    appends the level's sinusoids. With the level's a**2 in ``alphas_cumprod`` the embedding e becomes
    a (e + noise std sqrt(1 - a**2) / a) + (1 - a) mean.
    """
    levels = None if scheduler is None else scheduler.alphas_cumprod
    if isinstance(level, bool) or not isinstance(level, int) or level < 0:
        raise ConfigError(f"noise_level is {shown(level)}, expected a whole number from 0")
    if levels is not None and level >= len(levels):
        raise ConfigError(f"noise_level is {level}, but the pipeline has {len(levels)} levels, from 0")
    cpu = torch.device("cpu")
    mean, std = torch.zeros(1, width, device=cpu), torch.ones(1, width, device=cpu)
    if normalizer is not None:
        mean, std = normalizer.mean.detach(), normalizer.std.detach()
    if tuple(mean.shape) != (1, width):
        raise ConfigError(
            f"the image normalizer is for embeddings {mean.shape[-1]} wide, this UNet takes {width}: give "
            "the pipeline that the UNet is from"
        )
    kept = torch.ones(1, device=cpu) if levels is None else levels[level : level + 1]
    scale = moved(kept, cpu, torch.float64).sqrt().expand(1, width)
    embeddings = require("diffusers.models.embeddings", extra="diffusers")
    sinusoids = embeddings.get_timestep_embedding(
        torch.tensor([level], device=cpu), width, flip_sin_to_cos=True, downscale_freq_shift=0
    )
    mean, std = (moved(part, cpu, torch.float64) for part in (mean, std))
    deviation = (std * (1 - scale**2).sqrt() / scale).squeeze(0)
    return deviation, scale, torch.cat(((1 - scale) * mean, sinusoids.double()), dim=1)


FAMILY = StableUnclip
