"""Tiny Flux and Stable Diffusion 3 models with random weights, and whole pipelines of them."""

from typing import Any

import diffusers
import tokenizers
import torch
import transformers
from torch import Tensor, nn

from builders.changes import random_weights
from builders.diffusion import tiny_text_encoder, tiny_tokenizer, tiny_vae
from builders.mmdits import FLUX, SD3

TOKENS, POOLED, T5 = 24, 16, 24
WIDTHS = {"joint_attention_dim": TOKENS, "pooled_projection_dim": POOLED}


def tiny_flux(**changes: Any) -> nn.Module:
    """16 latent channels as 64-wide patches, one double and one single block."""
    config = FLUX | WIDTHS | {"in_channels": 64, "num_layers": 1, "num_single_layers": 1}
    return random_weights(diffusers.FluxTransformer2DModel(**config | {"guidance_embeds": True} | changes))


def tiny_sd3(**changes: Any) -> nn.Module:
    """16 latent channels, two joint blocks, the first with attention of the image alone too."""
    config = SD3 | WIDTHS | {"in_channels": 16, "out_channels": 16, "num_layers": 2}
    own = {"qk_norm": "rms_norm", "dual_attention_layers": (0,)}
    return random_weights(diffusers.SD3Transformer2DModel(**config | own | changes))


def flow_vae() -> nn.Module:
    """16 channels, scaled and shifted as FLUX's."""
    return tiny_vae(
        latent_channels=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def flow_scheduler(**changes: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**changes)


def tiny_t5(width: int = T5) -> nn.Module:
    torch.manual_seed(3)
    config = transformers.T5Config(
        vocab_size=32, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2, is_gated_act=True
    )
    return transformers.T5EncoderModel(config).eval()


def t5_tokenizer(length: int = 512) -> Any:
    words = ["<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    core = tokenizers.Tokenizer(model)
    core.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    core.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=length
    )


def flux_pipeline(**changes: Any) -> Any:
    parts = {
        "transformer": tiny_flux(),
        "vae": flow_vae(),
        "scheduler": flow_scheduler(shift=3.0, use_dynamic_shifting=True),
        "text_encoder": tiny_text_encoder(1, width=POOLED),
        "tokenizer": tiny_tokenizer(),
        "text_encoder_2": tiny_t5(),
        "tokenizer_2": t5_tokenizer(),
    }
    return diffusers.FluxPipeline(**{**parts, **changes})


def sd3_pipeline(**changes: Any) -> Any:
    parts = {
        "transformer": tiny_sd3(),
        "vae": flow_vae(),
        "scheduler": flow_scheduler(shift=3.0),
        "text_encoder": tiny_text_encoder(1, width=8, projection=6),
        "tokenizer": tiny_tokenizer(),
        "text_encoder_2": tiny_text_encoder(2, width=12, projection=10),
        "tokenizer_2": tiny_tokenizer(),
        "text_encoder_3": tiny_t5(),
        "tokenizer_3": t5_tokenizer(),
    }
    return diffusers.StableDiffusion3Pipeline(**{**parts, **changes})


def unpacked(patches: Tensor, side: int) -> Tensor:
    """FLUX's row of patches (B, h/2 * w/2, 4C) as latents (B, C, h, w): diffusers' own function."""
    latents: Tensor = diffusers.FluxPipeline._unpack_latents(patches, side, side, 1)
    return latents
