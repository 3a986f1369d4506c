"""open_clip's own VisionTransformer: class token, average, no pooling, and attentional pooling (CoCa).

Source: open_clip/transformer.py, class VisionTransformer (`_embeds`, `_pool`, `_global_pool`, `forward`).
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs._base.optional import require
from diva_rs.clip.heads import split_head
from diva_rs.clip.tower import OPENAI_MEAN, OPENAI_STD, Tower, three, two
from diva_rs.errors import ConfigError

SUPPORTED = "open_clip models with a VisionTransformer (CLIP, CustomTextCLIP, CoCa)"

_PARTS = ("conv1", "class_embedding", "positional_embedding", "transformer", "ln_post", "_global_pool")


def matches(model: nn.Module) -> bool:
    """Whether a module is built like open_clip's VisionTransformer."""
    return all(hasattr(model, part) for part in _PARTS)


def build(model: nn.Module, where: str = "") -> Tower:
    """The tower over an open_clip VisionTransformer."""
    v: Any = model
    unused: frozenset[str] = frozenset()
    # "tok", and "none", where the library projects the whole sequence: token 0 is its first row.
    last, tap = [v.ln_post], _sequence
    if getattr(v, "attn_pool", None) is not None:
        _check_pooler(v)
        last, tap = [], _attentional
        if v.attn_pool_contrastive is not None and v.attn_pool_type == "parallel":
            # These queries feed the caption decoder only.
            unused = frozenset(f"attn_pool.{key}" for key, _ in v.attn_pool.named_parameters())
    elif v.pool_type == "avg":
        last, tap = last if v.final_ln_after_pool else [], _average
    cfg: Mapping[str, Any] = getattr(v, "preprocess_cfg", None) or {}
    return vit_tower(
        v,
        where,
        last,
        tap=lambda pixels: tap(v, pixels),
        family="open_clip",
        image_size=two(v.image_size),
        mean=three(cfg.get("mean", getattr(v, "image_mean", None)), OPENAI_MEAN),
        std=three(cfg.get("std", getattr(v, "image_std", None)), OPENAI_STD),
        unused=unused,
        rebuild=lambda copied: build(copied, where),
    )


def vit_tower(
    v: Any, where: str, last: Iterable[nn.Module], tap: Callable[[Tensor], Tensor], **others: Any
) -> Tower:
    """The tower over a ViT with the parts of CLIP's; ``last`` are its layers between ``tap`` and ``proj``."""
    head = split_head(last)
    positions, width = (int(size) for size in v.positional_embedding.shape)
    return Tower(
        name=type(v).__name__,
        module=v,
        norm=head.norm,
        proj=v.proj,
        patches=positions - 1,
        width=width,
        embed_dim=width if v.proj is None else int(v.proj.shape[1]),
        where=where,
        prefix=f"{where}." if where else "",
        stem=v.conv1,
        tap=lambda pixels: head.apply(tap(pixels)),
        **others,
    )


def embed_patches(v: Any, pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) -> (B, 1 + P, W): the class token and the patches at their positions."""
    patches = v.conv1(pixels).flatten(2).transpose(1, 2)  # (B, P, W)
    first = v.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
    tokens: Tensor = torch.cat([first, patches], dim=1) + v.positional_embedding.to(patches.dtype)
    return tokens


def _sequence(v: Any, pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) -> (B, 1 + P, W), the tokens after the last block."""
    if hasattr(v, "_embeds"):
        embedded = v._embeds(pixels)
    else:  # open_clip 2.30 has the same lines inside forward
        embedded = v.ln_pre(v.patch_dropout(embed_patches(v, pixels)))
    tokens: Tensor = v.transformer(embedded)
    return tokens


def _average(v: Any, pixels: Tensor) -> Tensor:
    """As `_sequence`, with the mean of the patches in place of the class token."""
    tokens = _sequence(v, pixels)
    # LayerNorm and mean do not commute.
    patches = (tokens if v.final_ln_after_pool else v.ln_post(tokens))[:, 1:]
    return torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1)


def _attentional(v: Any, pixels: Tensor) -> Tensor:
    """Token 0 is the pooled query; the patches are what the pooler's attention reads: after its LayerNorm."""
    tokens = _sequence(v, pixels)
    if v.attn_pool_contrastive is not None:
        tokens = v.ln_post(tokens)
        queries = tokens if v.attn_pool_type == "parallel" else v.attn_pool(tokens)
        pooled, patches = v.attn_pool_contrastive(queries), tokens
    else:
        pooled = v.ln_post(v.attn_pool(tokens))  # (B, Q, W)
        patches = v.attn_pool.ln_k(tokens)  # (B, 1 + P, W)
        if v.pool_type == "avg":
            pooled = pooled[:, 1:].mean(dim=1, keepdim=True)
    return torch.cat([pooled[:, :1], patches[:, 1:]], dim=1)


def _check_pooler(v: Any) -> None:
    width, pooled = int(v.positional_embedding.shape[1]), int(v.attn_pool.query.shape[1])
    if width != pooled:
        raise ConfigError(
            f"this {type(v).__name__} pools by attention from patches of width {width} to queries of width "
            f"{pooled}, and one projector cannot take both. Supported are models whose embed_dim equals the "
            "vision width, and all models without attentional_pool"
        )


def check_quick_gelu(clip: nn.Module, model_name: str, pretrained: str) -> bool:
    """Warn when open_clip weights were trained with another GELU than the model computes; scores then drop
    by several points.

    ``model_name`` and ``pretrained`` are the arguments of ``open_clip.create_model``. Returns True when they
    agree, or when ``pretrained`` is a file or an unknown tag.

    >>> check_quick_gelu(clip, "ViT-L-14", "laion2b_s32b_b82k")
    True
    """
    known = require("open_clip", extra="open-clip").get_pretrained_cfg(
        model_name.replace("/", "-"), pretrained
    )
    activations = {type(layer).__name__ for layer in clip.modules()} & {"QuickGELU", "GELU"}
    if not known or len(activations) != 1:
        return True
    trained, computes = bool(known.get("quick_gelu", False)), activations == {"QuickGELU"}
    if trained == computes:
        return True
    names = {True: "QuickGELU", False: "GELU"}
    warnings.warn(
        f"{model_name} computes {names[computes]}, but the weights {pretrained!r} were trained with "
        f"{names[trained]}: create the model with force_quick_gelu={trained}",
        UserWarning,
        stacklevel=2,
    )
    return False
