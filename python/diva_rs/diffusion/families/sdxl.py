"""Stable Diffusion XL: two text encoders, pooled text and image sizes (arXiv 2307.01952)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from diva_rs.diffusion.families.unet import UNet
from diva_rs.diffusion.text import Parts, encode_prompts


class SDXL(UNet):
    """The cross-attention reads the next to last hidden states of up to two encoders, side by side."""

    text_encoders = ("text_encoder", "text_encoder_2")

    @classmethod
    def matches(cls, model: Any) -> bool:
        if not super().matches(model) or model.config.class_embed_type is not None:
            return False
        return bool(model.config.addition_embed_type == "text_time")

    def encode(self, prompts: Sequence[str], parts: Parts) -> Tensor:
        return encode_prompts(prompts, parts, self.text_encoders, penultimate=True)


FAMILY = SDXL
