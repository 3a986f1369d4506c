"""diffusers' PixArtTransformer2DModel, of PixArt-alpha (arXiv 2310.00426) and sigma (2403.04692)."""

from typing import Any

import torch
from torch import Tensor, nn

from diva_rs.diffusion.condition import Condition, Slots
from diva_rs.diffusion.families.family import Context, Family
from diva_rs.errors import ConfigError


class PixArt(Family):
    """The condition stands for the text encoder's tokens, before the model's own projection of them.

    No token is masked: a ``text_condition`` holds the tokens of the text without padding.
    """

    supported = "a diffusers PixArtTransformer2DModel"
    of = "PixArtTransformer2DModel"

    def __init__(self, model: nn.Module, context: Context) -> None:
        super().__init__(model, context)
        config: Any = self.model.config
        width = config.caption_channels or config.cross_attention_dim
        if width is None:
            raise ConfigError(
                f"this {type(model).__name__} has no cross-attention: no condition could reach it"
            )
        self.text_width = int(width)
        self.slots = Slots(tokens=self.text_width)

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        self.check_sides(noisy, int(self.model.config.patch_size))
        output: Tensor = self.model(
            noisy,
            encoder_hidden_states=condition.tokens,
            timestep=timesteps,
            return_dict=False,
            **self.added(noisy),
        )[0]
        return output

    def added(self, noisy: Tensor) -> dict[str, Any]:
        """Further inputs: the size of the image, uncropped, where the model was trained with sizes."""
        if not self.model.use_additional_conditions:
            return {}
        height, width = (side * self.context.pixels_per_latent() for side in noisy.shape[-2:])
        size = [noisy.new_full((len(noisy), 1), side) for side in (height, width)]
        ratio = noisy.new_full((len(noisy), 1), height / width)
        return {"added_cond_kwargs": {"resolution": torch.cat(size, dim=1), "aspect_ratio": ratio}}


FAMILY = PixArt
