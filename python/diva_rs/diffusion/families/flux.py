"""diffusers' FluxTransformer2DModel: latents as a row of 2 x 2 patches, rotary positions, guidance."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs.diffusion.condition import Condition
from diva_rs.diffusion.families.family import Context
from diva_rs.diffusion.families.mmdit import MMDiT
from diva_rs.diffusion.text import Parts, encode_t5
from diva_rs.errors import ConfigError, shown

_PATCH = 2
_SIDE = 128  # of the latents that FluxPipeline makes by default
_GUIDANCE = 3.5  # FluxPipeline's default


class Flux(MMDiT):
    """``guidance`` is the scale whose embedding the guidance-distilled models read, by default 3.5."""

    of = "FluxTransformer2DModel"
    supported = "a diffusers FluxTransformer2DModel"
    options = MMDiT.options | {"guidance"}
    text_encoders = ("text_encoder", "text_encoder_2")
    pooling = ("text_encoder",)

    def __init__(
        self, model: nn.Module, context: Context, guidance: float | None = None, **options: Any
    ) -> None:
        super().__init__(model, context, **options)
        config: Any = self.model.config
        if guidance is not None and not config.guidance_embeds:
            raise ConfigError("guidance is given, but this Flux has no guidance embedding: leave it out")
        if guidance is not None and (isinstance(guidance, bool) or not isinstance(guidance, (int, float))):
            raise ConfigError(f"guidance is {shown(guidance)}, expected a number such as {_GUIDANCE}")
        self.guidance = (
            (_GUIDANCE if guidance is None else float(guidance)) if config.guidance_embeds else None
        )

    @property
    def channels(self) -> int:
        return int(self.model.config.in_channels) // _PATCH**2

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.channels, _SIDE, _SIDE)

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        self.check_sides(noisy, _PATCH)
        tokens, pooled = self.filled(noisy, condition)
        batch, channels, height, width = noisy.shape
        rows, columns = height // _PATCH, width // _PATCH
        patches = noisy.reshape(batch, channels, rows, _PATCH, columns, _PATCH).permute(0, 2, 4, 1, 3, 5)
        sides = (torch.arange(n, device=noisy.device, dtype=torch.float32) for n in (1, rows, columns))
        positions = torch.cartesian_prod(*sides)
        output: Tensor = self.model(
            hidden_states=patches.reshape(batch, rows * columns, channels * _PATCH**2),
            encoder_hidden_states=tokens,
            pooled_projections=pooled,
            timestep=timesteps.to(noisy.dtype) / 1000,  # which the model multiplies by 1000
            img_ids=positions,
            txt_ids=positions.new_zeros(tokens.shape[1], 3),
            guidance=None if self.guidance is None else noisy.new_full((batch,), self.guidance),
            return_dict=False,
        )[0]
        patches = output.reshape(batch, rows, columns, channels, _PATCH, _PATCH)
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(noisy.shape)

    def encode(self, prompts: Sequence[str], parts: Parts) -> Tensor:
        return encode_t5(prompts, parts, "text_encoder_2", 512)


FAMILY = Flux
