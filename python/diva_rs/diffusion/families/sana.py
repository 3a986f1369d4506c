"""diffusers' SanaTransformer2DModel (arXiv 2410.10629): linear attention and flow matching."""

from typing import Any

from torch import Tensor, nn

from diva_rs.diffusion.condition import Condition
from diva_rs.diffusion.families.family import Context
from diva_rs.diffusion.families.pixart import PixArt
from diva_rs.errors import ConfigError


class Sana(PixArt):
    """As `PixArt`; it was trained without sizes."""

    supported = "a diffusers SanaTransformer2DModel"
    of = "SanaTransformer2DModel"

    def __init__(self, model: nn.Module, context: Context) -> None:
        super().__init__(model, context)
        if self.model.config.guidance_embeds:
            raise ConfigError(
                "this Sana was distilled to read a guidance scale, as Sana-Sprint is; take the model that it "
                "was distilled from"
            )

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        return super().predict(noisy, timesteps * self.model.config.timestep_scale, condition)

    def added(self, noisy: Tensor) -> dict[str, Any]:
        return {}


FAMILY = Sana
