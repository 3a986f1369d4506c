"""Tiny diffusion models with random weights, one per way a condition can enter, and pipelines of them."""

import json
import tempfile
from pathlib import Path

import diffusers
import torch
import transformers

TEXT_WIDTH = 24
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

_UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (16, 32),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 2,
    "cross_attention_dim": TEXT_WIDTH,
}
_LINEAR = {"use_linear_projection": True, "attention_head_dim": (2, 4)}

UNETS = {
    # 1x1-convolution projections, the same number of heads everywhere
    "sd1": {},
    # linear projections, heads of one size
    "sd2": _LINEAR,
    # SD-2's v-prediction models have an upcast attention
    "sd2-v": {**_LINEAR, "upcast_attention": True},
    # pooled text and six sizes of 8 values each beside a doubled text width; deeper transformers
    "sdxl": {
        **_LINEAR,
        "cross_attention_dim": 2 * TEXT_WIDTH,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + TEXT_WIDTH,
        "transformer_layers_per_block": (1, 2),
    },
    # Stable unCLIP: the image embedding through the time embedding
    "unclip": {**_LINEAR, "class_embed_type": "projection", "projection_class_embeddings_input_dim": 20},
    # works on pixels
    "pixel": {"in_channels": 3, "out_channels": 3},
    # DeepFloyd: pixels, a wider text that the UNet projects itself, learned variance
    "pixel-wide-text": {
        "in_channels": 3,
        "out_channels": 6,
        "encoder_hid_dim": 40,
        "encoder_hid_dim_type": "text_proj",
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 4,
    },
}


def tiny_unet(kind="sd1", seed=0, **changes):
    """A UNet2DConditionModel of one of the kinds in UNETS, as it comes from its class: float32, trainable."""
    torch.manual_seed(seed)
    return diffusers.UNet2DConditionModel(**{**_UNET, **UNETS[kind], **changes})


def tiny_dit(seed=0, classes=10, same_tables=True, **changes):
    """A DiT with learned variance. As in the published weights, all blocks have the same label embeddings."""
    torch.manual_seed(seed)
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 3,
        "norm_num_groups": 4,
        "sample_size": 8,
        "num_embeds_ada_norm": classes,
    }
    dit = diffusers.DiTTransformer2DModel(**{**config, **changes})
    if same_tables:
        first = dit.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight
        for block in dit.transformer_blocks:
            block.norm1.emb.class_embedder.embedding_table.weight.data.copy_(first.data)
    return dit


def tiny_vae(seed=0, **changes):
    """An AutoencoderKL that halves twice: 32 pixels are 8 latents."""
    torch.manual_seed(seed)
    config = {
        "block_out_channels": (8, 8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 32,
    }
    return diffusers.AutoencoderKL(**{**config, **changes})


def tiny_text_encoder(seed=0, width=TEXT_WIDTH, projection=None, **changes):
    """A CLIPTextModel; with ``projection``, a CLIPTextModelWithProjection of that width (SDXL's second)."""
    torch.manual_seed(seed)
    vocabulary = len(_vocabulary())
    config = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }
    if projection is not None:
        config["projection_dim"] = projection
    kind = transformers.CLIPTextModel if projection is None else transformers.CLIPTextModelWithProjection
    return kind(transformers.CLIPTextConfig(**{**config, **changes})).eval()


def tiny_tokenizer(length=77):
    """A CLIPTokenizer over single letters and a few merges, built from files as a published one is."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "vocab.json").write_text(json.dumps(_vocabulary()))
        (folder / "merges.txt").write_text(
            "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in _MERGES) + "\n"
        )
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": length})
        )
        return transformers.CLIPTokenizer.from_pretrained(name)


def tiny_scheduler(kind="sd1"):
    """The training schedule of Stable Diffusion; "sd2-v" predicts v."""
    return diffusers.DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        steps_offset=1,
        prediction_type="v_prediction" if kind == "sd2-v" else "epsilon",
    )


def tiny_pipeline(kind="sd1"):
    """A StableDiffusionPipeline, or for "sdxl" a StableDiffusionXLPipeline, of tiny parts."""
    parts = {"vae": tiny_vae(), "unet": tiny_unet(kind), "scheduler": tiny_scheduler(kind)}
    if kind == "sdxl":
        return diffusers.StableDiffusionXLPipeline(
            **parts,
            text_encoder=tiny_text_encoder(1),
            tokenizer=tiny_tokenizer(),
            text_encoder_2=tiny_text_encoder(2, projection=TEXT_WIDTH),
            tokenizer_2=tiny_tokenizer(),
        )
    return diffusers.StableDiffusionPipeline(
        **parts,
        text_encoder=tiny_text_encoder(),
        tokenizer=tiny_tokenizer(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def teacher_inputs(channels, positions, width, dtype, batch=3, side=8):
    """(noisy, timesteps, condition): the condition is a leaf."""
    generator = torch.Generator().manual_seed(5)
    noisy = torch.randn(batch, channels, side, side, generator=generator, dtype=dtype)
    condition = torch.randn(batch, positions, width, generator=generator, dtype=dtype, requires_grad=True)
    return noisy, torch.tensor([3, 500, 999])[:batch], condition


def loss_of(prediction):
    """A scalar to which every element contributes another share."""
    return (
        prediction * torch.linspace(-1, 2, prediction.numel(), dtype=prediction.dtype).view_as(prediction)
    ).sum()


def direct_call(kind, unet, noisy, timesteps, condition, text):
    """The call that diffusers' own pipelines make for this kind of UNet."""
    batch = len(noisy)
    if kind == "sdxl":
        sizes = torch.tensor([[32, 32, 0, 0, 32, 32]], dtype=noisy.dtype).repeat(batch, 1)
        added = {"text_embeds": noisy.new_zeros(batch, TEXT_WIDTH), "time_ids": sizes}
        return unet(noisy, timesteps, condition, added_cond_kwargs=added).sample
    if kind == "unclip":
        return unet(noisy, timesteps, text.repeat(batch, 1, 1), class_labels=condition.mean(1)).sample
    return unet(noisy, timesteps, condition).sample


_MERGES = [
    ("c", "a"),
    ("ca", "t</w>"),
    ("p", "h"),
    ("ph", "o"),
    ("pho", "t"),
    ("phot", "o</w>"),
    ("o", "f</w>"),
]


def _vocabulary():
    words = [
        *_LETTERS,
        ".",
        *(f"{letter}</w>" for letter in _LETTERS),
        ".</w>",
        *("".join(pair) for pair in _MERGES),
    ]
    return {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
