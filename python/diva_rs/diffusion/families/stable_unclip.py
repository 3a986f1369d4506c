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

    Behind it the published models read an embedding of its noise level, as wide as itself: that of
    ``noise_level``, by default 0 where the pipeline has the parts that noise image embeddings. None leaves
    all of the class embedding to the condition.
    """

    text_joins = False
    options = UNet.options | {"noise_level"}

    def __init__(
        self, model: nn.Module, context: Context, noise_level: int | None = None, **options: Any
    ) -> None:
        super().__init__(model, context, **options)
        width = int(self.model.config.projection_class_embeddings_input_dim)
        if noise_level is None and context.noises_images():
            noise_level = 0
        self._level: Tensor | None = None
        if noise_level is not None:
            if isinstance(noise_level, bool) or not isinstance(noise_level, int) or noise_level < 0:
                raise ConfigError(f"noise_level is {shown(noise_level)}, expected a whole number from 0")
            if width % 2:
                raise ConfigError(f"noise_level: this UNet's class embedding is {width} wide, no even number")
            width //= 2
            self._level = _sinusoids(noise_level, width)
        self.slots = Slots(pooled=width)
        self._hidden: Tensor | None = None

    @classmethod
    def matches(cls, model: Any) -> bool:
        return super().matches(model) and model.config.class_embed_type is not None

    @property
    def entry(self) -> str:
        return f"class projection, {self.slots.width} wide (text by cross-attention, {self.text_width} wide)"

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        if self._hidden is None:
            self._hidden = self._text(noisy)
        labels = condition.pooled
        if self._level is not None and labels is not None:
            level = moved(self._level, labels.device, labels.dtype)
            labels = torch.cat((labels, level.expand(len(labels), -1)), dim=1)
        return self.call(noisy, timesteps, self._hidden.expand(len(noisy), -1, -1), labels)

    def native(self) -> NativePlan | str:
        plan = super().native()
        if isinstance(plan, str):
            return plan
        if self._level is not None:
            return "it reads a noise level behind the image embedding"
        text = self._text(next(self.model.parameters()))
        return NativePlan(plan.kind, plan.fields, {**plan.fixed, "encoder_hidden_states": text})

    def _text(self, like: Tensor) -> Tensor:
        assert self.text_width is not None
        return moved(self.context.text(self.text_width), like.device, like.dtype)


def _sinusoids(level: int, width: int) -> Tensor:
    # diffusers StableUnCLIPImg2ImgPipeline.noise_image_embeddings
    embeddings = require("diffusers.models.embeddings", extra="diffusers")
    found: Tensor = embeddings.get_timestep_embedding(
        torch.tensor([level], device="cpu"), width, flip_sin_to_cos=True, downscale_freq_shift=0
    )
    return found


FAMILY = StableUnclip
