"""open_clip's own VisionTransformer: class token, average, no pooling, and attentional pooling (CoCa).

Source: open_clip/transformer.py, class VisionTransformer (`_embeds`, `_pool`, `_global_pool`, `forward`).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs._base.optional import require
from diva_rs.clip.heads import split_head
from diva_rs.clip.tower import OPENAI_MEAN, OPENAI_STD, Tower, three, two

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
    last, tap, width = [v.ln_post], _sequence, int(v.positional_embedding.shape[1])
    if getattr(v, "attn_pool", None) is not None:
        last, tap, width = [], _attentional, int(v.attn_pool.query.shape[1])
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
        width=width,
        family="open_clip",
        image_size=two(v.image_size),
        mean=three(cfg.get("mean", getattr(v, "image_mean", None)), OPENAI_MEAN),
        std=three(cfg.get("std", getattr(v, "image_std", None)), OPENAI_STD),
        unused=unused,
        rebuild=lambda copied: build(copied, where),
    )


def vit_tower(
    v: Any, where: str, last: Iterable[nn.Module], tap: Callable[[Tensor], Tensor], width: int, **others: Any
) -> Tower:
    """The tower over a ViT with the parts of CLIP's; ``last`` are its layers between ``tap`` and ``proj``."""
    head = split_head(last)
    return Tower(
        name=type(v).__name__,
        module=v,
        norm=head.norm,
        proj=v.proj,
        patches=int(v.positional_embedding.shape[0]) - 1,
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
    """Token 0 is the pooled query. Patches are in its space, as wide as the embedding: the values that the
    pooler's attention averages. (With a contrastive pooler both spaces are one.)
    """
    tokens = _sequence(v, pixels)
    if v.attn_pool_contrastive is not None:
        tokens = v.ln_post(tokens)
        queries = tokens if v.attn_pool_type == "parallel" else v.attn_pool(tokens)
        pooled, patches = v.attn_pool_contrastive(queries), tokens
    else:
        pooled = v.ln_post(v.attn_pool(tokens))  # (B, Q, W)
        patches = v.ln_post(_values(v.attn_pool, tokens))  # (B, 1 + P, W)
        if v.pool_type == "avg":
            pooled = pooled[:, 1:].mean(dim=1, keepdim=True)
    return torch.cat([pooled[:, :1], patches[:, 1:]], dim=1)


def _values(pooler: Any, tokens: Tensor) -> Tensor:
    """(B, N, W) -> (B, N, D): what the pooler's attention gives for a token that it attends to alone."""
    attention = pooler.attn
    weight = attention.v_proj_weight if attention.in_proj_weight is None else attention.in_proj_weight
    value = nn.functional.linear(
        pooler.ln_k(tokens), weight[-attention.embed_dim :], attention.in_proj_bias[-attention.embed_dim :]
    )
    values: Tensor = attention.out_proj(value)
    return values


def names_for(weights: Mapping[str, Tensor]) -> list[str]:
    """The names under which open_clip lists a model of these sizes, for messages; activations do not show."""
    library = require("open_clip", extra="open-clip")
    sizes = _sizes(weights)
    return [
        name for name in library.list_models() if sizes and sizes == _listed(library.get_model_config(name))
    ]


def _sizes(weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Patch, image and width of the vision tower, embedding, text width and length; () for another layout."""
    text = "text." if "text.positional_embedding" in weights else ""
    needed = ("visual.conv1.weight", "visual.positional_embedding", "visual.proj")
    keys = (*needed, f"{text}positional_embedding")
    if any(key not in weights or weights[key].ndim < 2 for key in keys):
        return ()
    conv, positions, proj, words = (weights[key].shape for key in keys)
    side = round((positions[0] - 1) ** 0.5) * conv[-1]
    blocks = {key.split(".")[3] for key in weights if key.startswith("visual.transformer.resblocks.")}
    return (conv[-1], side, conv[0], len(blocks), proj[1], words[1], words[0])


def _listed(config: Mapping[str, Any]) -> tuple[Any, ...]:
    vision, text = config["vision_cfg"], config["text_cfg"]
    sizes = [vision.get(name) for name in ("patch_size", "image_size", "width", "layers")]
    class_token = int(bool(text.get("embed_cls")))
    return (
        *sizes,
        config["embed_dim"],
        text.get("width", 512),
        text.get("context_length", 77) + class_token,
    )
