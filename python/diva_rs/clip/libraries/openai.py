"""The VisionTransformer of OpenAI's `clip` package, and of forks that keep its layout.

Source: openai/CLIP, clip/model.py, class VisionTransformer (`forward`). It is recognised by its parts: its
blocks run sequence-first and it has no method that stops before the pooling, so the same sub-modules are
called here in turn.
"""

from typing import Any

import torch
from torch import Tensor, nn

from diva_rs.clip.heads import split_head
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
    head = split_head([v.ln_post])
    batch_first = bool(v.transformer.resblocks[0].attn.batch_first)
    positions, width = (int(size) for size in v.positional_embedding.shape)
    rows, columns = v.conv1.kernel_size
    side = round((positions - 1) ** 0.5)

    def tap(pixels: Tensor) -> Tensor:
        patches = v.conv1(pixels).flatten(2).transpose(1, 2)  # (B, P, W)
        first = v.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        tokens = torch.cat([first, patches], dim=1) + v.positional_embedding.to(patches.dtype)
        tokens = v.ln_pre(tokens)
        if batch_first:
            return head.apply(v.transformer(tokens))
        # The blocks run on (1 + P, B, W).
        return head.apply(v.transformer(tokens.transpose(0, 1)).transpose(0, 1))

    return Tower(
        name=type(v).__name__,
        family="openai",
        module=v,
        norm=head.norm,
        proj=v.proj,
        patches=positions - 1,
        width=width,
        embed_dim=width if v.proj is None else int(v.proj.shape[1]),
        image_size=(side * rows, side * columns),
        where=where,
        prefix=f"{where}." if where else "",
        stem=v.conv1,
        tap=tap,
        rebuild=lambda copied: build(copied, where),
    )
