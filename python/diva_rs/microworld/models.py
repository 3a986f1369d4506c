"""The tiny diffusion models with fresh weights: ordinary diffusers and transformers modules."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from diva_rs._base.optional import require
from diva_rs.microworld.captions import Tokenizer
from diva_rs.microworld.rendering import SIDE

LATENT_CHANNELS, FACTOR = 16, 8  # of the VAE: 48 x 48 x 3 pixels become 6 x 6 x 16
CONDITION_WIDTH = 64


def new_vae(seed: int) -> nn.Module:
    """A diffusers ``AutoencoderKL`` that makes 6 x 6 latents of 16 channels."""
    diffusers = require("diffusers", extra="diffusers")
    with seeded(seed):
        vae: nn.Module = diffusers.AutoencoderKL(
            block_out_channels=(8, 16, 32, 64),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=LATENT_CHANNELS,
            layers_per_block=1,
            norm_num_groups=8,
            sample_size=SIDE,
        )
    return vae.eval()


def new_text_encoder(seed: int) -> nn.Module:
    """A transformers ``CLIPTextModel`` of two layers that reads the world's words for the denoiser."""
    transformers = require("transformers", extra="diffusers")
    tokenizer = Tokenizer()
    with seeded(seed):
        encoder: nn.Module = transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=tokenizer.vocab_size,
                hidden_size=CONDITION_WIDTH,
                intermediate_size=4 * CONDITION_WIDTH,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=tokenizer.context_length,
                pad_token_id=0,
                bos_token_id=tokenizer.vocab_size - 2,
                eos_token_id=tokenizer.vocab_size - 1,
            )
        )
    return encoder.eval()


def new_unet(seed: int) -> nn.Module:
    """A diffusers ``UNet2DConditionModel`` with text conditioning on 6 x 6 latents."""
    diffusers = require("diffusers", extra="diffusers")
    with seeded(seed):
        unet: nn.Module = diffusers.UNet2DConditionModel(
            sample_size=SIDE // FACTOR,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            block_out_channels=(64, 80),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=2,
            cross_attention_dim=CONDITION_WIDTH,
            norm_num_groups=16,
        )
    return unet.eval()


def new_scheduler() -> Any:
    """The training noise schedule of the tiny diffusion models: Stable Diffusion's, predicting the velocity.

    The velocity gives high noise more weight than the noise does; there the condition matters most.
    """
    diffusers = require("diffusers", extra="diffusers")
    return diffusers.DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction"
    )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Fresh weights from ``seed``; the caller's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
