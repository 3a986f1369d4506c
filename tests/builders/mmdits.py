"""Small Flux and SD3 transformers of every kind that has a native network, and inputs for both."""

from collections.abc import Callable

import diffusers
import torch
from diffusers import FluxPipeline
from torch import Tensor, nn

from builders.changes import random_weights
from diva_rs._native import Network
from diva_rs.diffusion import NativePlan
from diva_rs.native.mmdit import MMDIT

GUIDANCE = 4.0
FLUX = {
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 6,
    "pooled_projection_dim": 10,
    "axes_dims_rope": (2, 2, 4),
}
SD3 = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 6,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 10,
    "pos_embed_max_size": 12,
}
VARIANTS = {
    "flux": FLUX,
    "flux-two-streams": FLUX | {"num_single_layers": 0},
    "flux-one-stream": FLUX | {"num_layers": 0},
    "flux-guidance": FLUX | {"guidance_embeds": True},
    "flux-three-heads": FLUX
    | {"num_attention_heads": 3, "attention_head_dim": 6, "axes_dims_rope": (2, 2, 2)},
    "flux-one-channel": FLUX | {"in_channels": 4, "out_channels": 4},
    "flux-equal-widths": FLUX | {"joint_attention_dim": 10},
    "sd3": SD3,
    "sd3-rms": SD3 | {"qk_norm": "rms_norm"},
    "sd3-layer-norm": SD3 | {"qk_norm": "layer_norm"},
    "sd3-dual": SD3 | {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
    "sd3-dual-last": SD3 | {"num_layers": 2, "dual_attention_layers": (1,)},
    "sd3-one-block": SD3 | {"num_layers": 1},
    "sd3-patches-of-1": SD3 | {"patch_size": 1, "sample_size": 7},
    "sd3-equal-widths": SD3 | {"joint_attention_dim": 10},
}


def build(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    return random_weights(cls_of(name)(**VARIANTS[name])).to(dtype).eval()


def cls_of(name: str) -> type[nn.Module]:
    return diffusers.FluxTransformer2DModel if "flux" in name else diffusers.SD3Transformer2DModel


def inputs(
    model: nn.Module, size: tuple[int, int] = (6, 10), length: int = 5
) -> tuple[Tensor, Tensor, Tensor]:
    """noisy, timesteps, condition: the tokens' columns and those of the pooled vector."""
    generator = torch.Generator().manual_seed(2)
    config, dtype = model.config, next(model.parameters()).dtype
    channels = config.in_channels // 4 if is_flux(model) else config.in_channels
    noisy = torch.randn(2, channels, *size, generator=generator)
    condition = torch.randn(2, length, sum(widths(model)), generator=generator)
    return noisy.to(dtype), torch.tensor([3.25, 997.0], dtype=torch.float64), condition.to(dtype)


def is_flux(model: nn.Module) -> bool:
    return isinstance(model, diffusers.FluxTransformer2DModel)


def widths(model: nn.Module) -> tuple[int, int]:
    return model.config.joint_attention_dim, model.config.pooled_projection_dim


def theirs(model: nn.Module) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The model's own prediction, by the parts of its pipeline."""

    def predict(noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        tokens, pooled = condition.split(widths(model), dim=-1)
        pooled = pooled.mean(dim=1)
        if not is_flux(model):
            return model(noisy, tokens, pooled, timesteps.to(noisy.dtype), return_dict=False)[0]
        batch, channels, height, width = noisy.shape
        image = FluxPipeline._prepare_latent_image_ids(
            batch, height // 2, width // 2, noisy.device, noisy.dtype
        )
        guidance = noisy.new_full((batch,), GUIDANCE) if model.config.guidance_embeds else None
        output = model(
            FluxPipeline._pack_latents(noisy, batch, channels, height, width),
            tokens,
            pooled,
            timesteps.to(noisy.dtype) / 1000,
            image,
            noisy.new_zeros(tokens.shape[1], 3),
            guidance,
            return_dict=False,
        )[0]
        return FluxPipeline._unpack_latents(output, height, width, vae_scale_factor=1)

    return predict


def native_mmdit(
    model: nn.Module, checkpoint: bool = False, exact: nn.Module | None = None, train: str | None = None
) -> Network:
    fields = {"guidance": GUIDANCE} if model.config.get("guidance_embeds") else {}
    return MMDIT.build(model, NativePlan("mmdit", fields), checkpoint, exact, train)
