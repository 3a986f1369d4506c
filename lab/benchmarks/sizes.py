"""The model sizes, as configurations of open_clip, diffusers and transformers."""

from dataclasses import dataclass, replace
from typing import Any

from diva_rs._base.settings import hint
from diva_rs.errors import ConfigError


@dataclass(frozen=True)
class Size:
    """Models and batch of one size; weights are random, which does not change the time."""

    name: str
    clip: dict[str, Any]  # open_clip.model.CLIP
    unet: dict[str, Any]  # diffusers.UNet2DConditionModel
    vae: dict[str, Any]  # diffusers.AutoencoderKL
    text: dict[str, Any]  # transformers.CLIPTextConfig: the teacher's text encoder
    batch: int
    choose: int  # of CLIP's patches, for each draw
    draws: int = 2
    precisions: tuple[str, ...] = ("bf16",)  # measured by default

    @property
    def side(self) -> int:
        """Height and width in pixels of the images."""
        return int(self.vae["sample_size"])

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the latents."""
        side = self.side // 2 ** (len(self.vae["block_out_channels"]) - 1)
        return 4, side, side

    def describe(self) -> str:
        """One line about the models and the batch.

        >>> find("published").describe()
        'UNet 320/640/1280/1280 on 64x64 latents, ViT of 24x1024 at 224 pixels, batch 1, N = 2, 76 patches'
        """
        vision = self.clip["vision_cfg"]
        channels = "/".join(map(str, self.unet["block_out_channels"]))
        return (
            f"UNet {channels} on {self.latent_shape[1]}x{self.latent_shape[2]} latents, ViT of "
            f"{vision['layers']}x{vision['width']} at {vision['image_size']} pixels, batch {self.batch}, "
            f"N = {self.draws}, {self.choose} patches"
        )


def _clip(embed: int, side: int, patch: int, layers: int, width: int, head: int, text: int) -> dict[str, Any]:
    vision = {"image_size": side, "patch_size": patch, "layers": layers, "width": width, "head_width": head}
    words = {"context_length": 77, "vocab_size": 49408, "width": text, "heads": text // 64, "layers": 12}
    return {"embed_dim": embed, "vision_cfg": vision, "text_cfg": words, "quick_gelu": True}


def _unet(channels: tuple[int, ...], condition: int, heads: Any, side: int) -> dict[str, Any]:
    # Stable Diffusion 2: cross-attention at all resolutions but the lowest, linear projections.
    deep = len(channels) - 1
    return {
        "sample_size": side,
        "block_out_channels": channels,
        "down_block_types": ("CrossAttnDownBlock2D",) * deep + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * deep,
        "attention_head_dim": heads,  # diffusers' name for the number of heads
        "cross_attention_dim": condition,
        "use_linear_projection": True,
    }


def _vae(channels: tuple[int, ...], layers: int, groups: int, side: int) -> dict[str, Any]:
    return {
        "block_out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
        "latent_channels": 4,
        "layers_per_block": layers,
        "norm_num_groups": groups,
        "sample_size": side,
    }


def _text(width: int, layers: int, heads: int, words: int = 49408) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 77,
        "vocab_size": words,
    }


_TINY = Size(
    "tiny",
    clip={
        "embed_dim": 20,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
    },
    unet={
        **_unet((8, 16), 24, 2, 8),
        "norm_num_groups": 4,
        "layers_per_block": 1,
    },
    vae=_vae((8, 8), 1, 4, 16),
    text=_text(24, 1, 2, 64),
    batch=2,
    choose=5,
    precisions=("fp32",),
)

SIZES = {
    size.name: size
    for size in (
        _TINY,  # takes seconds: for tests
        Size(
            "microworld",  # what the demo trains
            clip=_clip(128, 64, 8, 6, 192, 64, 128),
            unet={**_unet((64, 128, 128), 128, 4, 16), "layers_per_block": 1},
            vae=_vae((16, 32, 32, 32), 1, 16, 128),
            text=_text(128, 2, 2),
            batch=8,
            choose=20,
            precisions=("fp32", "bf16"),
        ),
        Size(
            "half",  # the published size with half its widths and half its sides
            clip=_clip(512, 224, 16, 12, 512, 64, 512),
            unet=_unet((160, 320, 640, 640), 512, (5, 10, 20, 20), 32),
            vae=_vae((64, 128, 256, 256), 2, 32, 256),
            text=_text(512, 12, 8),
            batch=1,
            choose=58,
        ),
        Size(
            "published",  # SD-2-1-base and OpenAI's ViT-L/14
            clip=_clip(768, 224, 14, 24, 1024, 64, 768),
            unet=_unet((320, 640, 1280, 1280), 1024, (5, 10, 20, 20), 64),
            vae=_vae((128, 256, 512, 512), 2, 32, 512),
            text=_text(1024, 23, 16),
            batch=1,
            choose=76,
        ),
    )
}


def find(name: str) -> Size:
    """The size of that name; ``published@8`` is ``published`` with a batch of 8.

    >>> find("microworld").latent_shape
    (4, 16, 16)
    >>> find("published@8").batch
    8
    """
    base, _, batch = name.partition("@")
    if base not in SIZES or (batch and not batch.isdecimal()):
        raise ConfigError(f"size={name!r} is unknown{hint(name, SIZES) or ': one of ' + ', '.join(SIZES)}")
    return replace(SIZES[base], name=name, batch=int(batch)) if batch else SIZES[base]
