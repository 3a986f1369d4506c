"""open_clip's TimmModel over a timm vision transformer: SigLIP with its MAP head, EVA-02 and others.

Source: open_clip/timm_model.py (`trunk`, then `head`); timm/models/vision_transformer.py and eva.py
(`forward_features`, then `pool`, `fc_norm`, `head_drop`, `head`).
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs.clip.heads import split_head
from diva_rs.clip.tower import HALF, OPENAI_MEAN, OPENAI_STD, Tower, three, two
from diva_rs.errors import ConfigError

SUPPORTED = "open_clip models over a timm ViT (SigLIP, EVA-02)"

_PARTS = ("patch_embed", "blocks", "forward_features", "pool", "fc_norm", "head_drop", "head")


def matches(model: nn.Module) -> bool:
    """Whether a module is built like open_clip's TimmModel."""
    return hasattr(model, "trunk") and hasattr(model, "head")


def build(model: nn.Module, where: str = "", warn: bool = True) -> Tower:
    """The tower over a TimmModel; with ``warn``, warns about pixel statistics that are not SigLIP's."""
    v: Any = model
    trunk: Any = v.trunk
    missing = [part for part in (*_PARTS, "num_prefix_tokens") if not hasattr(trunk, part)]
    if missing:
        raise ConfigError(
            f"the timm trunk {type(trunk).__name__} has no `{missing[0]}`, so it has no patch tokens. "
            "Supported trunks are timm's VisionTransformer (SigLIP, CLIP) and Eva (EVA-02)"
        )
    if getattr(trunk, "attn_pool", None) is None and not trunk.global_pool:
        raise ConfigError(
            f"the timm trunk {type(trunk).__name__} does not pool (global_pool=''), so there is no image "
            "embedding: create the model with timm_pool='map', 'token' or 'avg'"
        )
    head = split_head([trunk.fc_norm, trunk.head_drop, trunk.head, *v.head.children()])
    skipped = int(trunk.num_prefix_tokens)  # class and register tokens
    width = int(trunk.embed_dim)

    def tap(pixels: Tensor) -> Tensor:
        tokens = trunk.forward_features(pixels)  # (B, skipped + P, W)
        pooled = trunk.pool(tokens).unsqueeze(1)
        return head.apply(torch.cat([pooled, tokens[:, skipped:]], dim=1))

    # SigLIP is the family with a MAP head and no class token.
    siglip = trunk.global_pool == "map" and not getattr(trunk, "has_class_token", True)
    own, given = (getattr(trunk, "pretrained_cfg", None) or {}), (getattr(v, "preprocess_cfg", None) or {})
    own_mean = three(own.get("mean"), HALF if siglip else OPENAI_MEAN)
    own_std = three(own.get("std"), HALF if siglip else OPENAI_STD)
    # What open_clip set on the model, else timm's, else the family's.
    mean = three(given.get("mean"), three(getattr(v, "image_mean", None), own_mean))
    if warn and siglip and own_mean == HALF and mean == OPENAI_MEAN:
        warnings.warn(
            "open_clip set OpenAI's pixel mean and std on this SigLIP model, as it does without a pretrained "
            "tag; SigLIP weights are trained on mean 0.5, std 0.5. Create the model with image_mean and "
            "image_std of (0.5, 0.5, 0.5), or set clip_mean and clip_std in the recipe",
            UserWarning,
            stacklevel=4,
        )
    return Tower(
        name=type(trunk).__name__,
        family="timm",
        module=v,
        norm=head.norm,
        proj=head.proj,
        proj_transposed=True,
        patches=int(trunk.patch_embed.num_patches),
        width=head.width(width),
        embed_dim=head.embed_dim(width),
        image_size=two(trunk.patch_embed.img_size),
        mean=mean,
        std=three(given.get("std"), three(getattr(v, "image_std", None), own_std)),
        where=where,
        prefix=f"{where}." if where else "",
        fused={"attn.qkv.weight": "qkv", "attn_pool.kv.weight": "kv"},
        stem=trunk.patch_embed,
        tap=tap,
        rebuild=lambda copied: build(copied, where, warn=False),
    )
