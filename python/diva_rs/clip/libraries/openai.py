"""The VisionTransformer of OpenAI's `clip` package, and of forks that keep its layout.

Source: openai/CLIP, clip/model.py, class VisionTransformer (`forward`). It is recognised by its parts: its
blocks run sequence-first and it has no method that stops before the pooling, so the same sub-modules are
called here in turn.
"""

from typing import Any

from torch import Tensor, nn

from diva_rs.clip.libraries.open_clip import embed_patches, vit_tower
from diva_rs.clip.tower import Tower
from diva_rs.errors import ConfigError

SUPPORTED = "ViT models of OpenAI's clip"

_PARTS = ("conv1", "class_embedding", "positional_embedding", "ln_pre", "transformer", "ln_post", "proj")
_FOREIGN = ("attn_pool", "global_average_pool", "patch_dropout")


def matches(model: nn.Module) -> bool:
    """Whether a module is built like OpenAI's VisionTransformer, and not like open_clip's."""
    parts = all(hasattr(model, part) for part in _PARTS) and hasattr(model.transformer, "resblocks")
    return parts and not hasattr(model, "_global_pool")


def build(model: nn.Module, where: str = "") -> Tower:
    """The tower over an OpenAI VisionTransformer."""
    v: Any = model
    foreign = [part for part in _FOREIGN if hasattr(v, part)]
    if foreign:
        raise ConfigError(
            f"{type(v).__name__} has `{foreign[0]}` as in an open_clip before 2.30, whose pooling is not "
            "supported: pip install 'diva-rs[open-clip]'"
        )
    batch_first = bool(v.transformer.resblocks[0].attn.batch_first)
    rows, columns = v.conv1.kernel_size
    side = round((v.positional_embedding.shape[0] - 1) ** 0.5)

    def tap(pixels: Tensor) -> Tensor:
        tokens: Tensor = v.ln_pre(embed_patches(v, pixels))
        # Blocks that are not batch-first run on (1 + P, B, W).
        tokens = v.transformer(tokens if batch_first else tokens.transpose(0, 1))
        return tokens if batch_first else tokens.transpose(0, 1)

    return vit_tower(
        v,
        where,
        [v.ln_post],
        tap,
        width=int(v.positional_embedding.shape[1]),
        family="openai",
        opened="conv1",  # clip/model.py, class CLIP (`dtype`)
        image_size=(side * rows, side * columns),
        rebuild=lambda copied: build(copied, where),
    )
