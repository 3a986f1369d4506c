"""Stable unCLIP: an image embedding enters through the time embedding, text is cross-attended."""

from typing import Any

from torch import Tensor, nn

from diva_rs.diffusion.condition import Condition, Slots
from diva_rs.diffusion.families.family import Context, NativePlan
from diva_rs.diffusion.families.unet import UNet
from diva_rs.diffusion.frozen import moved


class StableUnclip(UNet):
    """The condition stands in the place of the image embedding."""

    text_joins = False

    def __init__(self, model: nn.Module, context: Context, **options: Any) -> None:
        super().__init__(model, context, **options)
        self.slots = Slots(pooled=int(self.model.config.projection_class_embeddings_input_dim))
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
        return self.call(noisy, timesteps, self._hidden.expand(len(noisy), -1, -1), condition.pooled)

    def native(self) -> NativePlan | str:
        plan = super().native()
        if isinstance(plan, str):
            return plan
        text = self._text(next(self.model.parameters()))
        return NativePlan(plan.kind, plan.fields, {**plan.fixed, "encoder_hidden_states": text})

    def _text(self, like: Tensor) -> Tensor:
        assert self.text_width is not None
        return moved(self.context.text(self.text_width), like.device, like.dtype)


FAMILY = StableUnclip
