"""diffusers' DiTTransformer2DModel as a native network over the same weights."""

from typing import Any

from diva_rs.native import diffusers_layers as layers
from diva_rs.native.inspect import class_path, expect, one

_DIT = f"{layers.MODELS}transformers.dit_transformer_2d.DiTTransformer2DModel"
_BLOCK = f"{layers.MODELS}attention.BasicTransformerBlock"
_FEED_FORWARD = f"{layers.MODELS}attention.FeedForward"
_GELU = f"{layers.MODELS}activations.GELU"
_ADA_NORM = f"{layers.MODELS}normalization.AdaLayerNormZero"
_EMBEDDINGS = f"{layers.MODELS}embeddings."
_COMBINED = f"{_EMBEDDINGS}CombinedTimestepLabelEmbeddings"
_LABELS = f"{_EMBEDDINGS}LabelEmbedding"
_SINUSOIDS = f"{_EMBEDDINGS}Timesteps"
_TIME = f"{_EMBEDDINGS}TimestepEmbedding"
_PATCHES = f"{_EMBEDDINGS}PatchEmbed"

_ALLOWED = layers.COMMON | {
    *(_DIT, _BLOCK, _FEED_FORWARD, _GELU, _ADA_NORM, _COMBINED, _LABELS, _SINUSOIDS, _TIME, _PATCHES),
    *(layers.LAYER_NORM, f"{layers.TORCH}sparse.Embedding"),
}


def dit_config(dit: Any) -> dict[str, Any]:
    """The native network's configuration but `label` and `checkpoint`, read from the modules."""
    blocks = list(dit.transformer_blocks)
    for i, block in enumerate(blocks):
        _check_block(f"transformer_blocks.{i}", block)
    attentions = [block.attn1 for block in blocks]
    projections = [layer for a in attentions for layer in (a.to_q, a.to_k, a.to_v)]
    _check_plain_norm("norm_out", dit.norm_out)
    eps1 = one("eps of norm1", [block.norm1.norm.eps for block in blocks])
    eps3 = one("eps of norm3", [block.norm3.eps for block in blocks])
    return {
        **_patch_fields(dit),
        "num_layers": len(blocks),
        "heads": one("number of heads", [attention.heads for attention in attentions]),
        "hidden": one("width of the feed-forward", [block.ff.net[0].proj.out_features for block in blocks]),
        "activation": one("activation", [_activation(block.ff.net[0]) for block in blocks]),
        "attention_bias": one("attention bias", [layer.bias is not None for layer in projections]),
        "norm_elementwise_affine": one("norm3", [block.norm3.elementwise_affine for block in blocks]),
        "norm_eps": (eps1, eps3, dit.norm_out.eps),
        **_embedding_fields([block.norm1.emb for block in blocks]),
    }


def _patch_fields(dit: Any) -> dict[str, Any]:
    embed, patch = dit.pos_embed, int(dit.patch_size)
    expect(class_path(embed) == _PATCHES, f"pos_embed is a {class_path(embed)}")
    layers.check_conv("pos_embed.proj", embed.proj, patch, patch, 0)
    plain = embed.flatten and not embed.layer_norm and embed.pos_embed_max_size is None
    expect(plain and embed.patch_size == patch, "pos_embed is of an unknown form")
    expect(embed.pos_embed is not None, "it has no positions")
    expect(embed.interpolation_scale == 1, f"its positions are scaled by {embed.interpolation_scale}")
    return {
        "in_channels": embed.proj.in_channels,
        "out_channels": dit.out_channels,
        "patch_size": patch,
        "grid": one("side of pos_embed", [embed.height, embed.width, embed.base_size]),
        "width": embed.proj.out_channels,
    }


def _embedding_fields(embeddings: list[Any]) -> dict[str, Any]:
    for embedding in embeddings:
        expect(class_path(embedding) == _COMBINED, f"norm1.emb is a {class_path(embedding)}")
        time, labels = embedding.timestep_embedder, embedding.class_embedder
        expect(class_path(time) == _TIME, f"timestep_embedder is a {class_path(time)}")
        layers.check_silu("timestep_embedder.act", time.act)
        expect(time.cond_proj is None and time.post_act is None, "timestep_embedder is of an unknown form")
        sinusoids = embedding.time_proj
        expect(class_path(sinusoids) == _SINUSOIDS, f"time_proj is a {class_path(sinusoids)}")
        expect(sinusoids.scale == 1, "its timesteps are scaled")
        expect(class_path(labels) == _LABELS, f"class_embedder is a {class_path(labels)}")
        random = labels.training and labels.dropout_prob > 0
        expect(not random, "class_embedder (LabelEmbedding) is random in train mode")
    times = [embedding.time_proj for embedding in embeddings]
    tables = [embedding.class_embedder.embedding_table for embedding in embeddings]
    return {
        "time_channels": one("num_channels of time_proj", [time.num_channels for time in times]),
        "flip_sin_to_cos": one("flip_sin_to_cos", [time.flip_sin_to_cos for time in times]),
        "freq_shift": one("downscale_freq_shift", [time.downscale_freq_shift for time in times]),
        "num_classes": one("num_classes", [int(e.class_embedder.num_classes) for e in embeddings]),
        "label_rows": one("rows of the label table", [table.num_embeddings for table in tables]),
    }


def _check_block(where: str, block: Any) -> None:
    expect(class_path(block) == _BLOCK, f"{where} is a {class_path(block)}")
    expect(block.norm_type == "ada_norm_zero", f"{where}.norm_type is {block.norm_type!r}")
    expect(class_path(block.norm1) == _ADA_NORM, f"{where}.norm1 is a {class_path(block.norm1)}")
    _check_plain_norm(f"{where}.norm1.norm", block.norm1.norm)
    expect(class_path(block.norm3) == layers.LAYER_NORM, f"{where}.norm3 is a {class_path(block.norm3)}")
    layers.check_silu(f"{where}.norm1.silu", block.norm1.silu)
    layers.check_attention(f"{where}.attn1", block.attn1, residual=False)
    expect(block.attn2 is None and block.pos_embed is None, f"{where} is of an unknown form")
    expect(not block.only_cross_attention, f"{where} has only cross-attention")
    expect(block._chunk_size is None, f"{where} computes its feed-forward in chunks")
    parts = [class_path(part) for part in block.ff.net]
    expect(parts == [_GELU, layers.DROPOUT, layers.LINEAR], f"{where}.ff is made of {', '.join(parts)}")


def _check_plain_norm(where: str, norm: Any) -> None:
    expect(class_path(norm) == layers.LAYER_NORM, f"{where} is a {class_path(norm)}")
    expect(not norm.elementwise_affine, f"{where} has weights")


def _activation(gelu: Any) -> str:
    names = {"none": "gelu", "tanh": "gelu_tanh"}
    expect(gelu.approximate in names, f"a GELU is approximated by {gelu.approximate!r}")
    return names[gelu.approximate]


DIT = layers.Denoiser(
    kind="dit",
    configs={_DIT: dit_config},
    allowed=_ALLOWED,
    small=lambda key: key.startswith(("pos_embed.", "proj_out_")) or ".norm" in key,
)
