"""Stable Diffusion XL: two text encoders, pooled text and image sizes (arXiv 2307.01952)."""

from typing import Any

from torch import Tensor

from diva_rs.diffusion.families.unet import UNet
from diva_rs.diffusion.text import Parts, encode_prompt


class SDXL(UNet):
    """The cross-attention reads the next to last hidden states of up to two encoders, side by side."""

    text_encoders = ("text_encoder", "text_encoder_2")

    @classmethod
    def matches(cls, model: Any) -> bool:
        if not super().matches(model) or model.config.class_embed_type is not None:
            return False
        return bool(model.config.addition_embed_type == "text_time")

    def encode(self, prompt: str, parts: Parts) -> Tensor:
        return encode_prompt(prompt, parts, self.text_encoders, penultimate=True)


FAMILY = SDXL
