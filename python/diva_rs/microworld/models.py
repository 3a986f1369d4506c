"""The tiny models with fresh weights, ordinary modules of their libraries, and CLIP's embeddings."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs._base.optional import require
from diva_rs.errors import ConfigError
from diva_rs.microworld.captions import Tokenizer
from diva_rs.microworld.rendering import SIDE

MEAN, STD = 0.5, 0.25  # of the pixels, near enough; the same for all channels
LATENT_CHANNELS, FACTOR = 16, 8  # of the VAE: 48 x 48 x 3 pixels become 6 x 6 x 16
CONDITION_WIDTH = 64


def new_clip(seed: int, tokenizer: Tokenizer | None = None, side: int = SIDE, patch: int = 12) -> nn.Module:
    """The tiny CLIP as an ordinary ``open_clip.CLIP`` with fresh weights: 48 pixels, 16 patches.

    ``tokenizer`` is by default the microworld's; ``side`` and ``patch`` are in pixels.

    >>> sum(p.numel() for p in new_clip(0).parameters()) < 800_000
    True
    """
    open_clip, tokenizer = require("open_clip", extra="open-clip"), tokenizer or Tokenizer()
    if side % patch:
        raise ConfigError(f"side={side}: a multiple of patch={patch} is needed")
    vision = {"image_size": side, "layers": 4, "width": 96, "head_width": 32, "patch_size": patch}
    text = {"width": 96, "heads": 3, "layers": 2, "vocab_size": tokenizer.vocab_size}
    text["context_length"] = tokenizer.context_length
    clip = fresh(seed, open_clip.model.CLIP, embed_dim=64, vision_cfg=vision, text_cfg=text)
    # open_clip models have these attributes, and adapters read them.
    clip.visual.image_mean, clip.visual.image_std = (MEAN,) * 3, (STD,) * 3  # type: ignore[union-attr]
    return clip


def new_vae(seed: int, side: int = SIDE) -> nn.Module:
    """A diffusers ``AutoencoderKL`` that makes 6 x 6 latents of 16 channels from images of 48 pixels."""
    diffusers = require("diffusers", extra="diffusers")
    return fresh(
        seed,
        diffusers.AutoencoderKL,
        block_out_channels=(8, 16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=LATENT_CHANNELS,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=side,
    )


def new_text_encoder(seed: int, tokenizer: Tokenizer | None = None) -> nn.Module:
    """A transformers ``CLIPTextModel`` of two layers that reads captions for the denoiser."""
    transformers, tokenizer = require("transformers", extra="diffusers"), tokenizer or Tokenizer()
    config = transformers.CLIPTextConfig(
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
    return fresh(seed, transformers.CLIPTextModel, config=config)


def new_unet(seed: int, side: int = SIDE, heads: int = 2) -> nn.Module:
    """A diffusers ``UNet2DConditionModel`` with text conditioning on 6 x 6 latents, of 48 pixels.

    ``side`` is a multiple of 16 pixels: the VAE divides by 8, the UNet by 2. ``heads`` are those of each
    attention; the shapes of the weights do not depend on them.
    """
    diffusers = require("diffusers", extra="diffusers")
    if side % (2 * FACTOR):
        raise ConfigError(f"side={side}: a multiple of {2 * FACTOR} is needed")
    return fresh(
        seed,
        diffusers.UNet2DConditionModel,
        sample_size=side // FACTOR,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 80),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        attention_head_dim=heads,  # diffusers reads it as the number of heads
        cross_attention_dim=CONDITION_WIDTH,
        norm_num_groups=16,
    )


def new_scheduler() -> Any:
    """The training noise schedule of the tiny diffusion models: Stable Diffusion's, predicting the velocity.

    The velocity gives high noise more weight than the noise does; there the condition matters most. A sampler
    made from its configuration does not clip latents, which exceed the range [-1, 1] of pixels.
    """
    diffusers = require("diffusers", extra="diffusers")
    return diffusers.DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        clip_sample=False,
    )


def fresh(seed: int, make: Callable[..., nn.Module], **settings: Any) -> nn.Module:
    """A model in eval mode with weights from ``seed``; the caller's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(**settings).eval()


@torch.no_grad()
def image_embeddings(
    clip: Any, images: Callable[[Any], Tensor], items: Sequence[Any], batch: int = 256
) -> Tensor:
    """Unit embeddings (N, D) of ``items``, of which ``images`` makes pictures (B, 3, H, W) in [0, 1].

    >>> image_embeddings(new_clip(0), lambda items: torch.rand(len(items), 3, 48, 48), range(3)).shape
    torch.Size([3, 64])
    """
    parts = []
    for start in range(0, len(items), batch):
        pixels = (images(items[start : start + batch]) - MEAN) / STD
        parts.append(clip.encode_image(pixels, normalize=True))
    return torch.cat(parts)


@torch.no_grad()
def text_embeddings(clip: Any, tokens: Tensor, batch: int = 1024) -> Tensor:
    """Unit embeddings (N, D) of token ids (N, L).

    >>> text_embeddings(new_clip(0), Tokenizer()("a photo of a fish")).shape
    torch.Size([1, 64])
    """
    return torch.cat([clip.encode_text(part, normalize=True) for part in torch.split(tokens, batch)])
