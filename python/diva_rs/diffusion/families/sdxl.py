"""Stable Diffusion XL: two text encoders, pooled text and image sizes (arXiv 2307.01952)."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from diva_rs.diffusion.condition import Condition, Slots
from diva_rs.diffusion.families.family import Context, NativePlan
from diva_rs.diffusion.families.unet import UNet
from diva_rs.diffusion.text import Parts, encode_prompts
from diva_rs.errors import ConfigError, shown


class SDXL(UNet):
    """The cross-attention reads the next to last hidden states of up to two encoders, side by side.

    The condition fills it alone, beside one pooled text for all samples; with ``slot="both"`` it fills the
    pooled text, too.
    """

    options = UNet.options | {"slot"}
    text_encoders = ("text_encoder", "text_encoder_2")
    pooling = ("text_encoder_2",)

    def __init__(
        self,
        model: nn.Module,
        context: Context,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        slot: str = "tokens",
    ) -> None:
        super().__init__(model, context, added_cond_kwargs)
        if slot not in ("tokens", "both"):
            raise ConfigError(f'slot is {shown(slot)}, expected "tokens" or "both"')
        if slot == "both":
            if "text_embeds" in (added_cond_kwargs or {}):
                raise ConfigError('text_embeds is given, but slot="both" fills it with the condition')
            assert self.added is not None
            self.slots = Slots(self.text_width, self.added.sizes[0], apart=True)
            self.text_joins, self.text_width = False, None

    @classmethod
    def matches(cls, model: Any) -> bool:
        if not super().matches(model) or model.config.class_embed_type is not None:
            return False
        return bool(model.config.addition_embed_type == "text_time")

    @property
    def entry(self) -> str:
        return super().entry if self.slots.pooled is None else super(UNet, self).entry

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        return self.call(noisy, timesteps, condition.tokens, pooled=condition.pooled)

    def encode(self, prompts: Sequence[str], parts: Parts) -> Tensor:
        return encode_prompts(prompts, parts, self.text_encoders, penultimate=True)

    def native(self) -> NativePlan | str:
        return super().native() if self.slots.pooled is None else "the condition fills its pooled text"


FAMILY = SDXL
