"""A small student and teacher, and batches for them: the fixture of the tests that run whole steps."""

import diffusers
import open_clip
import torch
from torch import Tensor, nn

import diva_rs

SIDE = 32  # pixels of the images
WIDTH = 24  # of the condition


def small_clip(
    dtype: torch.dtype = torch.float32, seed: int = 0, embed_dim: int = 20, **vision: object
) -> nn.Module:
    """An open_clip ViT of two layers, 16 patches."""
    torch.manual_seed(seed)
    config = {"image_size": SIDE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8, **vision}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    return open_clip.model.CLIP(embed_dim=embed_dim, vision_cfg=config, text_cfg=text).to(dtype)


def small_unet(
    dtype: torch.dtype = torch.float32, seed: int = 1, channels: int = 4, **changes: object
) -> nn.Module:
    """An SD-style UNet on 8 x 8 latents."""
    torch.manual_seed(seed)
    config = {
        "sample_size": 8,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 2,
        "cross_attention_dim": WIDTH,
        "use_linear_projection": True,
    }
    return diffusers.UNet2DConditionModel(**{**config, **changes}).to(dtype)


def small_vae(dtype: torch.dtype = torch.float32, seed: int = 2) -> nn.Module:
    """An AutoencoderKL that makes 8 x 8 latents of 16 x 16 pixels."""
    torch.manual_seed(seed)
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    ).to(dtype)


def scheduler(**changes: object) -> diffusers.DDPMScheduler:
    """Stable Diffusion's noise schedule."""
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return diffusers.DDPMScheduler(**{**config, **changes})


def small_teacher(dtype: torch.dtype = torch.float32, text_tokens: int = 40) -> diva_rs.Teacher:
    """UNet, VAE, scheduler and a random text condition (1, text_tokens, WIDTH)."""
    text = torch.randn(1, text_tokens, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return diva_rs.Teacher(
        small_unet(dtype), vae=small_vae(dtype), scheduler=scheduler(), text_condition=text.to(dtype)
    )


def images(batch: int = 4, seed: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random pixels in [0, 1]: (batch, 3, 32, 32)."""
    return torch.rand(
        batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def gradients(trainer: diva_rs.Trainer) -> dict[str, Tensor]:
    """A copy of every `.grad` of a trainer's parameters."""
    return {
        name: parameter.grad.clone()
        for name, parameter in trainer.parameters().items()
        if parameter.grad is not None
    }


def worst(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Largest relative error over tensors of the same names, each against its own norm.

    The norm counts for at least 1e-6 of the largest one: gradients that are zero in exact arithmetic, such as
    those of attention's key biases, are rounding noise.
    """
    assert ours.keys() == theirs.keys()
    floor = 1e-6 * max(float(value.norm()) for value in theirs.values())
    return max(float((ours[k] - v).norm()) / max(float(v.norm()), floor) for k, v in theirs.items())
