"""What each library's vision module computes, as the configuration of a native tower.

Modules are read, not only their configs: which classes, which of their optional parts, which eps and heads.
"""

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from diva_rs.clip.heads import split_head
from diva_rs.clip.tower import Tower
from diva_rs.native import layers
from diva_rs.native.inspect import NotNative, class_path, expect, one

Config = dict[str, Any]

_RESIDUAL = ("VisionTransformer", "Transformer", "ResidualAttentionBlock", "QuickGELU")
_OPENAI = {f"clip.model.{name}" for name in _RESIDUAL}
_OPEN_CLIP = {f"open_clip.transformer.{name}" for name in (*_RESIDUAL, "LayerScale", "PatchDropout")}
_TIMM = {
    "open_clip.timm_model.TimmModel",
    "timm.models.vision_transformer.VisionTransformer",
    "timm.models.vision_transformer.Block",
    *(f"timm.layers.{name}" for name in ("patch_embed.PatchEmbed", "patch_dropout.PatchDropout")),
    *(f"timm.layers.{name}" for name in ("attention.Attention", "attention_pool.AttentionPoolLatent")),
    *(f"timm.layers.{name}" for name in ("mlp.Mlp", "drop.DropPath", "layer_scale.LayerScale")),
}
_TRANSFORMERS_PARTS = ("VisionEmbeddings", "Attention", "MLP", "EncoderLayer", "Encoder", "VisionModel")
_TRANSFORMERS = {
    "diva_rs.clip.libraries.transformers.VisionPart",
    "transformers.models.siglip.modeling_siglip.SiglipMultiheadAttentionPoolingHead",
    *(
        f"transformers.models.{package}.modeling_{package}.{family}{part}"
        for package, family in (("clip", "CLIP"), ("metaclip_2", "MetaClip2"), ("siglip", "Siglip"))
        for part in (*_TRANSFORMERS_PARTS, "VisionModelWithProjection", "VisionTransformer")
    ),
}
_COMMON = layers.PLAIN | layers.NORMS | layers.NORMS_IN_FLOAT32 | layers.ACTIVATIONS.keys()
ALLOWED: Mapping[str, frozenset[str]] = {
    "open_clip": _COMMON | _OPEN_CLIP,
    "openai": _COMMON | _OPENAI,
    "timm": _COMMON | _TIMM,
    "transformers-clip": _COMMON | _TRANSFORMERS,
    "transformers-siglip": _COMMON | _TRANSFORMERS,
}


def _shared(
    tower: Tower,
    dtype: torch.dtype,
    stem: Any,
    heads: Iterable[int],
    mlps: Iterable[tuple[Any, nn.Module]],
    norms: Iterable[nn.Module],
    linears: Iterable[Any],
) -> Config:
    """What every layout reads from its layers, and the values of a plain ViT, which a layout overrides.

    `stem` is the convolution of the patches, `mlps` the first layer and the activation of each MLP, `linears`
    the layers but those of queries, keys and values, whose bias is one choice.
    """
    first, activations = zip(*mlps, strict=True)
    return {
        "image": tower.image_size,
        "patch": layers.patch(stem),
        "stem_bias": stem.bias is not None,
        "heads": one("number of heads", map(int, heads)),
        "hidden": one("width of the MLPs", (int(layer.out_features) for layer in first)),
        "activation": one("activation", map(layers.activation, activations)),
        "eps": layers.eps(norms, dtype),
        "qkv_bias": True,
        "bias": layers.linears(linears),
        "class_token": True,
        "registers": 0,
        "positions": "all",
        "resize": "none",
        "layer_scale": False,
    }


def _openai(tower: Tower, dtype: torch.dtype) -> Config:
    """OpenAI's VisionTransformer (clip/model.py)."""
    v: Any = tower.module
    expect(class_path(v) == "clip.model.VisionTransformer", f"it is a {class_path(v)}")
    blocks = list(v.transformer.resblocks)
    expect(all(block.attn_mask is None for block in blocks), "its attention has a mask")
    batch_first = bool(one("batch_first", (block.attn.batch_first for block in blocks)))
    return _residual(tower, dtype, blocks, batch_first=batch_first, scales=False, average=False)


def _open_clip(tower: Tower, dtype: torch.dtype) -> Config:
    """open_clip's own VisionTransformer (open_clip/transformer.py), without attentional pooling."""
    v: Any = tower.module
    expect(class_path(v) == "open_clip.transformer.VisionTransformer", f"it is a {class_path(v)}")
    expect(getattr(v, "attn_pool", None) is None, "it pools by attention")
    expect(v.pool_type in ("tok", "avg", "none"), f"its pool_type is {v.pool_type!r}")
    blocks = list(v.transformer.resblocks)
    scales = layers.all_or_none("layer scale", [s for block in blocks for s in (block.ls_1, block.ls_2)])
    average = v.pool_type == "avg"
    first = bool(v.transformer.batch_first)
    return _residual(tower, dtype, blocks, batch_first=first, scales=scales, average=average)


def _residual(
    tower: Tower, dtype: torch.dtype, blocks: list[Any], *, batch_first: bool, scales: bool, average: bool
) -> Config:
    v: Any = tower.module
    for block in blocks:
        names = [name for name, _ in block.mlp.named_children()]
        expect(names == ["c_fc", "gelu", "c_proj"], f"the layers of an MLP are {names}")
    norm_pre = layers.present(v.ln_pre)
    norm = average and tower.norm is None
    norms = [norm for block in blocks for norm in (block.ln_1, block.ln_2)]
    norms += [v.ln_pre] if norm_pre else []
    norms += [v.ln_post] if norm or tower.norm is None else []
    linears = (layer for block in blocks for layer in (block.attn.out_proj, block.mlp.c_fc, block.mlp.c_proj))
    heads = (layers.attention_heads(block.attn, batch_first=batch_first) for block in blocks)
    mlps = [(block.mlp.c_fc, block.mlp.gelu) for block in blocks]
    return {
        **_shared(tower, dtype, v.conv1, heads, mlps, norms, linears),
        "layout": "open_clip",
        "root": tower.prefix.removesuffix("."),
        "width": int(v.positional_embedding.shape[1]),
        "layers": len(blocks),
        "norm_pre": norm_pre,
        "layer_scale": scales,
        "norm": norm,
        "pool": "avg" if average else "class",
        "head": [] if norm else _head(tower, [v.ln_post]),
    }


def _timm(tower: Tower, dtype: torch.dtype) -> Config:
    """open_clip's TimmModel over timm's VisionTransformer (timm/models/vision_transformer.py)."""
    m: Any = tower.module
    t = m.trunk
    known = "timm.models.vision_transformer.VisionTransformer"
    expect(class_path(t) == known, f"its trunk is a {class_path(t)}")
    embed, pool, blocks = t.patch_embed, t.attn_pool, list(t.blocks)
    layers.absent("the norm of the patch embedding", embed.norm)
    expect(not embed.dynamic_img_pad, "its patch embedding pads images")
    expect(embed.flatten or t.dynamic_img_size, "its patch embedding does not flatten")
    expect(t.global_pool in ("token", "avg", "map"), f"its pooling is {t.global_pool!r}")
    beyond = t.global_pool != "token" and getattr(t, "pool_include_prefix", False)
    expect(not beyond, "it pools over class and register tokens")
    norms = [norm for block in blocks for norm in (block.norm1, block.norm2)]
    norms += [norm for norm in (t.norm_pre, t.norm) if layers.present(norm)]
    attentions = [block.attn for block in blocks]
    linears = [layer for block in blocks for layer in (block.attn.proj, block.mlp.fc1, block.mlp.fc2)]
    mlps = [block.mlp for block in blocks]
    qkv = [attention.qkv for attention in attentions]
    if pool is not None:
        _check_timm_pool(pool)
        attentions, mlps, norms = [*attentions, pool], [*mlps, pool.mlp], [*norms, pool.norm]
        linears += [pool.proj, pool.mlp.fc1, pool.mlp.fc2]
        qkv += [pool.q, pool.kv]
    for attention in attentions:
        layers.scaled(attention)
        layers.absent("q_norm", attention.q_norm)
        layers.absent("k_norm", attention.k_norm)
    for block in blocks:
        layers.absent("the norm of an attention", getattr(block.attn, "norm", None))
        layers.absent("the gate of an attention", getattr(block.attn, "gate", None))
        expect(block.attn.head_dim * block.attn.num_heads == t.embed_dim, "heads do not fill the width")
    for mlp in mlps:
        layers.absent("the norm of an MLP", mlp.norm)
    heads = [attention.num_heads for attention in attentions]
    positions = "patches" if t.no_embed_class else "all"
    after = [t.fc_norm, t.head_drop, t.head, *m.head.children()]
    norms += [layer for layer in split_head(after).inside if isinstance(layer, nn.LayerNorm)]
    return {
        **_shared(tower, dtype, embed.proj, heads, [(mlp.fc1, mlp.act) for mlp in mlps], norms, linears),
        "layout": "timm",
        "root": f"{tower.prefix}trunk",
        "width": int(t.embed_dim),
        "layers": len(blocks),
        "class_token": t.cls_token is not None,
        "registers": 0 if t.reg_token is None else int(t.reg_token.shape[1]),
        "positions": "none" if t.pos_embed is None else positions,
        "resize": "bicubic-antialias" if t.dynamic_img_size else "none",
        "norm_pre": layers.present(t.norm_pre),
        "layer_scale": layers.all_or_none("layer scale", [s for b in blocks for s in (b.ls1, b.ls2)]),
        "norm": layers.present(t.norm),
        "qkv_bias": layers.linears(qkv),
        "pool": "map" if pool is not None else {"token": "class"}.get(t.global_pool, t.global_pool),
        "head": _head(tower, after),
    }


def _check_timm_pool(pool: Any) -> None:
    name = class_path(pool)
    expect(name == "timm.layers.attention_pool.AttentionPoolLatent", f"it pools by {name}")
    plain = pool.latent_len == 1 and pool.pool == "token" and pool.pos_embed is None and pool.mlp is not None
    expect(plain, "its attention pooling has several queries, positions or no MLP")


def _transformers(tower: Tower, dtype: torch.dtype) -> Config:
    """CLIP, MetaCLIP 2 and SigLIP of transformers (modeling_clip.py, modeling_siglip.py)."""
    part: Any = tower.module
    nested = hasattr(part, "vision_model")
    core: Any = part.vision_model if nested else part
    siglip = tower.family == "transformers-siglip"
    blocks = list(core.encoder.layers)
    attentions, mlps = [block.self_attn for block in blocks], [block.mlp for block in blocks]
    for attention in attentions:
        layers.scaled(attention)
        expect(not attention.is_causal, "its attention is causal")
        expect(attention.head_dim * attention.num_heads == attention.embed_dim, "heads do not fill the width")
        name = attention.config._attn_implementation
        # The eager form rounds the softmax to float32 in a float64 model; others have kernels of their own.
        expect(name == "sdpa", f"its attention implementation is {name!r}, not 'sdpa'")
    functions = importlib.import_module("transformers.modeling_utils").ALL_ATTENTION_FUNCTIONS
    own = functions["sdpa"].__module__ == "transformers.integrations.sdpa_attention"
    expect(own, "transformers' attention function 'sdpa' was replaced")
    heads = [attention.num_heads for attention in attentions]
    norms = [norm for block in blocks for norm in (block.layer_norm1, block.layer_norm2)]
    linears = [layer for mlp in mlps for layer in (mlp.fc1, mlp.fc2)] + [a.out_proj for a in attentions]
    qkv = [layer for a in attentions for layer in (a.q_proj, a.k_proj, a.v_proj)]
    if siglip:
        head = core.head
        heads.append(layers.attention_heads(head.attention, batch_first=True))
        mlps, norms = [*mlps, head.mlp], [*norms, core.post_layernorm, head.layernorm]
        linears += [head.attention.out_proj, head.mlp.fc1, head.mlp.fc2]
    else:
        norms.append(core.pre_layrnorm)
    _check_positions(core.embeddings)
    after = [] if siglip else [core.post_layernorm, getattr(part, "visual_projection", None)]
    stem, acting = core.embeddings.patch_embedding, [(mlp.fc1, mlp.activation_fn) for mlp in mlps]
    return {
        **_shared(tower, dtype, stem, heads, acting, norms, linears),
        "layout": tower.family,
        "root": f"{tower.prefix}vision_model" if nested else tower.prefix.removesuffix("."),
        "width": int(core.embeddings.position_embedding.weight.shape[1]),
        "layers": len(blocks),
        "class_token": not siglip,
        "norm_pre": not siglip,
        "norm": siglip,
        "qkv_bias": layers.linears(qkv),
        "pool": "map" if siglip else "class",
        "head": _head(tower, [layer for layer in after if layer is not None]),
    }


def _check_positions(embeddings: Any) -> None:
    table, order = embeddings.position_embedding, embeddings.position_ids
    plain = table.padding_idx is None and table.max_norm is None and not table.scale_grad_by_freq
    expect(plain and not table.sparse, "its position embedding is not a plain table")
    if not order.is_meta:
        count = torch.arange(int(table.weight.shape[0]), device="cpu")
        expect(torch.equal(order.flatten().cpu(), count), "its position_ids are not 0, 1, 2, ...")


def _head(tower: Tower, chain: Iterable[nn.Module]) -> list[tuple[str, str]]:
    """The layers of `chain` that the tower applies itself, by the checkpoint's keys."""
    names = {id(module): f"{tower.prefix}{name}" for name, module in tower.module.named_modules()}
    return layers.head_layers(split_head(chain).inside, lambda layer: names[id(layer)])


_READERS: Mapping[str, Callable[[Tower, torch.dtype], Config]] = {
    "open_clip": _open_clip,
    "openai": _openai,
    "timm": _timm,
    "transformers-clip": _transformers,
    "transformers-siglip": _transformers,
}


def read(tower: Tower, dtype: torch.dtype) -> Config:
    """The configuration of a native tower for `tower`, whose modules and weights were checked before."""
    layers.check_weightless(tower.module)
    try:
        return _READERS[tower.family](tower, dtype)
    except AttributeError as err:
        # Another version of the library, or layers in other places than its constructor puts them.
        raise NotNative(f"it is not laid out as expected: {err}") from err
