"""open_clip's own VisionTransformer: class token, average, no pooling, and attentional pooling (CoCa).

Source: open_clip/transformer.py, class VisionTransformer (`_embeds`, `_pool`, `_global_pool`, `forward`).
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs._base.arguments import takes
from diva_rs._base.kinds import model
from diva_rs._base.optional import require
from diva_rs._base.settings import optional, string
from diva_rs.clip.heads import own_parameter, split
from diva_rs.clip.tower import OPENAI_MEAN, OPENAI_STD, Tower, three, two
from diva_rs.errors import ConfigError

_PARTS = ("conv1", "class_embedding", "positional_embedding", "transformer", "ln_post", "_global_pool")


def matches(visual: nn.Module) -> bool:
    """Whether `visual` is built like open_clip's VisionTransformer."""
    return all(hasattr(visual, part) for part in _PARTS)


def build(visual: nn.Module, where: str = "") -> Tower:
    """The tower over an open_clip VisionTransformer; `where` is its attribute in the caller's model.

    Raises:
        ConfigError: attentional pooling into another width than the patches have; a computed projection.
    """
    v: Any = visual
    prefix = f"{where}." if where else ""
    proj = own_parameter(v.proj, f"{prefix}proj")
    head = split([v.ln_post])
    tap: Callable[[Tensor], Tensor]
    unused: frozenset[str] = frozenset()
    if getattr(v, "attn_pool", None) is not None:
        _check_pooler(v)
        head, tap = split([]), _attentional(v)
        if v.attn_pool_contrastive is not None and v.attn_pool_type == "parallel":
            # These queries feed the caption decoder only.
            unused = frozenset(f"attn_pool.{key}" for key, _ in v.attn_pool.named_parameters())
    elif v.pool_type == "avg":
        if v.final_ln_after_pool:
            tap = _average(v)
        else:
            # LayerNorm and mean do not commute: the norm comes first, so it cannot be left for later.
            head, tap = split([]), _average(v, v.ln_post)
    else:
        # "tok", and "none", where the library projects the whole sequence: token 0 is its first row.
        tap = _sequence(v)
    width = int(v.positional_embedding.shape[1])
    cfg: Mapping[str, Any] = getattr(v, "preprocess_cfg", None) or {}
    return Tower(
        name=type(v).__name__,
        family="open_clip",
        module=v,
        norm=head.norm,
        proj=proj,
        patches=int(v.positional_embedding.shape[0]) - 1,
        width=width,
        embed_dim=width if proj is None else int(proj.shape[1]),
        image_size=two(v.image_size),
        mean=three(cfg.get("mean", getattr(v, "image_mean", None)), OPENAI_MEAN),
        std=three(cfg.get("std", getattr(v, "image_std", None)), OPENAI_STD),
        where=where,
        prefix=prefix,
        unused=unused,
        stem=v.conv1,
        tap=lambda pixels: head.apply(tap(pixels)),
        rebuild=lambda module: build(module, where),
    )


def _sequence(v: Any) -> Callable[[Tensor], Tensor]:
    """Pixels -> (B, 1 + P, W) after the last block."""

    def tap(pixels: Tensor) -> Tensor:
        if hasattr(v, "_embeds"):
            embedded = v._embeds(pixels)
        else:  # open_clip 2.30 has the same lines inside forward
            patches = v.conv1(pixels).flatten(2).transpose(1, 2)  # (B, P, W)
            first = v.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
            embedded = torch.cat([first, patches], dim=1) + v.positional_embedding.to(patches.dtype)
            embedded = v.ln_pre(v.patch_dropout(embedded))
        tokens: Tensor = v.transformer(embedded)
        return tokens

    return tap


def _average(v: Any, norm: nn.Module | None = None) -> Callable[[Tensor], Tensor]:
    """As `_sequence`, with the mean of the patches in place of the class token."""
    sequence = _sequence(v)

    def tap(pixels: Tensor) -> Tensor:
        tokens = sequence(pixels)
        patches = (tokens if norm is None else norm(tokens))[:, 1:]
        return torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1)

    return tap


def _attentional(v: Any) -> Callable[[Tensor], Tensor]:
    """Token 0 is the pooled query; the patches are what the pooler's attention reads: after its LayerNorm."""
    sequence = _sequence(v)

    def tap(pixels: Tensor) -> Tensor:
        tokens = sequence(pixels)
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

    return tap


def _check_pooler(v: Any) -> None:
    width, pooled = int(v.positional_embedding.shape[1]), int(v.attn_pool.query.shape[1])
    if width != pooled:
        raise ConfigError(
            f"this {type(v).__name__} pools by attention from patches of width {width} to queries of width "
            f"{pooled}: class token and patch tokens do not fit one projector. Supported are models whose "
            "embed_dim equals the vision width, and all models without attentional_pool"
        )


@takes(clip=model(), model_name=string(), pretrained=optional(string()))
def check_quick_gelu(clip: nn.Module, model_name: str, pretrained: str) -> bool:
    """Warn when open_clip weights were trained with another GELU than the model computes.

    open_clip itself loads such weights with no more than a warning at creation, and scores drop by several
    points.

    Args:
        clip: an open_clip model.
        model_name: the first argument of ``open_clip.create_model``.
        pretrained: its second argument.

    Returns:
        True when they agree, or when `pretrained` is a file or an unknown tag, about which nothing is known.

    Raises:
        DependencyError: open_clip is not installed.

    >>> import open_clip
    >>> clip = open_clip.CLIP(
    ...     embed_dim=16,
    ...     vision_cfg=dict(image_size=32, patch_size=8, width=32, layers=1, head_width=16),
    ...     text_cfg=dict(context_length=8, vocab_size=64, width=16, heads=2, layers=1),
    ...     quick_gelu=True,
    ... )
    >>> check_quick_gelu(clip, "ViT-L-14", "openai")
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
