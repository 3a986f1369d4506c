"""diffusers' DiTTransformer2DModel as a native network over the same weights."""

from typing import Any

from torch import nn

import diva_rs._native as _native
from diva_rs.diffusion.families.family import NativePlan
from diva_rs.native.diffusers_layers import (
    ATTENTION,
    CONV,
    DROPOUT,
    LAYER_NORM,
    LINEAR,
    MODELS,
    MODULE_LIST,
    SILU,
    TORCH,
    check_attention,
    check_conv,
    check_model,
    check_silu,
    network,
    unrounded,
)
from diva_rs.native.inspect import check_weights, class_path, expect, one

_DIT = f"{MODELS}transformers.dit_transformer_2d.DiTTransformer2DModel"
_BLOCK = f"{MODELS}attention.BasicTransformerBlock"
_FEED_FORWARD = f"{MODELS}attention.FeedForward"
_GELU = f"{MODELS}activations.GELU"
_ADA_NORM = f"{MODELS}normalization.AdaLayerNormZero"
_EMBEDDINGS = f"{MODELS}embeddings."
_COMBINED = f"{_EMBEDDINGS}CombinedTimestepLabelEmbeddings"
_LABELS = f"{_EMBEDDINGS}LabelEmbedding"
_SINUSOIDS = f"{_EMBEDDINGS}Timesteps"
_TIME = f"{_EMBEDDINGS}TimestepEmbedding"
_PATCHES = f"{_EMBEDDINGS}PatchEmbed"

ALLOWED = {
    *(_DIT, _BLOCK, _FEED_FORWARD, _GELU, _ADA_NORM, _COMBINED, _LABELS, _SINUSOIDS, _TIME, _PATCHES),
    *(ATTENTION, CONV, LINEAR, LAYER_NORM, SILU, DROPOUT, MODULE_LIST, f"{TORCH}sparse.Embedding"),
}


def native_dit(
    module: nn.Module, plan: NativePlan, checkpoint: bool = False, exact: nn.Module | None = None
) -> _native.Network:
    """The native network that computes exactly what `module` does under a condition in its label's place.

    The weights share their storage and get no gradient. Predictions have `module`'s dtype, the device of the
    noisy latents, and no learned variance. With bf16 weights the matrix products of attention and
    feed-forward run in bf16 and the rest in float32, which is then the predictions' dtype.

    Args:
        module: a diffusers ``DiTTransformer2DModel`` in eval mode.
        plan: of its family: whether the condition is to "replace" each block's label embedding, or to "join"
            that of "no class".
        checkpoint: whether a step should run each block twice instead of keeping its activations.
        exact: what `module` was before it was rounded to bf16. What runs in float32 takes its weights
            unrounded: embeddings, modulation, norms, first and last projection.
    """
    dit: Any = module
    check_model(dit, _DIT, ALLOWED)
    config = {**dit_config(dit), **plan.fields, "checkpoint": checkpoint}
    weights = dict(dit.named_parameters(remove_duplicate=False))
    check_weights(weights.items())
    # The positions are a buffer that diffusers leaves in float32 when it loads the weights in another dtype.
    buffers = dict(dit.named_buffers())
    check_weights(buffers.items())
    same = all(buffer.device == dit.proj_out_1.weight.device for buffer in buffers.values())
    expect(same, "its positions are on another device than its weights")
    weights |= buffers | unrounded(exact, _is_small)
    return network("dit", config, weights)


def dit_config(dit: Any) -> dict[str, Any]:
    """The native network's configuration but `label` and `checkpoint`, read from the modules."""
    blocks = list(dit.transformer_blocks)
    for i, block in enumerate(blocks):
        _check_block(f"transformer_blocks.{i}", block)
    attentions = [block.attn1 for block in blocks]
    projections = [layer for a in attentions for layer in (a.to_q, a.to_k, a.to_v)]
    _check_plain_norm("norm_out", dit.norm_out)
    eps = (
        one("eps of norm1", [block.norm1.norm.eps for block in blocks]),
        one("eps of norm3", [block.norm3.eps for block in blocks]),
        dit.norm_out.eps,
    )
    return {
        **_patch_fields(dit),
        "num_layers": len(blocks),
        "heads": one("number of heads", [attention.heads for attention in attentions]),
        "hidden": one("width of the feed-forward", [block.ff.net[0].proj.out_features for block in blocks]),
        "activation": one("activation", [_activation(block.ff.net[0]) for block in blocks]),
        "attention_bias": one("attention bias", [layer.bias is not None for layer in projections]),
        "norm_elementwise_affine": one("norm3", [block.norm3.elementwise_affine for block in blocks]),
        "norm_eps": eps,
        **_embedding_fields([block.norm1.emb for block in blocks]),
    }


def _patch_fields(dit: Any) -> dict[str, Any]:
    embed, patch = dit.pos_embed, int(dit.patch_size)
    expect(class_path(embed) == _PATCHES, f"pos_embed is a {class_path(embed)}")
    check_conv("pos_embed.proj", embed.proj, patch, patch, 0)
    plain = embed.flatten and not embed.layer_norm and embed.pos_embed_max_size is None
    expect(plain and embed.patch_size == patch, "pos_embed is of an unknown form")
    expect(embed.pos_embed is not None, "it has no positions")
    expect(embed.interpolation_scale == 1, f"its positions are scaled by {embed.interpolation_scale}")
    grid = one("side of pos_embed", [embed.height, embed.width, embed.base_size])
    return {
        "in_channels": embed.proj.in_channels,
        "out_channels": dit.out_channels,
        "patch_size": patch,
        "grid": grid,
        "width": embed.proj.out_channels,
    }


def _embedding_fields(embeddings: list[Any]) -> dict[str, Any]:
    for embedding in embeddings:
        expect(class_path(embedding) == _COMBINED, f"norm1.emb is a {class_path(embedding)}")
        time, labels = embedding.timestep_embedder, embedding.class_embedder
        expect(class_path(time) == _TIME, f"timestep_embedder is a {class_path(time)}")
        check_silu("timestep_embedder.act", time.act)
        expect(time.cond_proj is None and time.post_act is None, "timestep_embedder is of an unknown form")
        expect(
            class_path(embedding.time_proj) == _SINUSOIDS, f"time_proj is a {class_path(embedding.time_proj)}"
        )
        expect(embedding.time_proj.scale == 1, "its timesteps are scaled")
        expect(class_path(labels) == _LABELS, f"class_embedder is a {class_path(labels)}")
        random = labels.training and labels.dropout_prob > 0
        expect(not random, "class_embedder (LabelEmbedding) is random in train mode")
    sinusoids = [embedding.time_proj for embedding in embeddings]
    labels = [embedding.class_embedder for embedding in embeddings]
    return {
        "time_channels": one("num_channels of time_proj", [time.num_channels for time in sinusoids]),
        "flip_sin_to_cos": one("flip_sin_to_cos", [time.flip_sin_to_cos for time in sinusoids]),
        "freq_shift": one("downscale_freq_shift", [time.downscale_freq_shift for time in sinusoids]),
        "num_classes": one("num_classes", [int(label.num_classes) for label in labels]),
        "label_rows": one(
            "rows of the label table", [label.embedding_table.num_embeddings for label in labels]
        ),
    }


def _check_block(where: str, block: Any) -> None:
    expect(class_path(block) == _BLOCK, f"{where} is a {class_path(block)}")
    expect(block.norm_type == "ada_norm_zero", f"{where}.norm_type is {block.norm_type!r}")
    expect(class_path(block.norm1) == _ADA_NORM, f"{where}.norm1 is a {class_path(block.norm1)}")
    _check_plain_norm(f"{where}.norm1.norm", block.norm1.norm)
    expect(class_path(block.norm3) == LAYER_NORM, f"{where}.norm3 is a {class_path(block.norm3)}")
    check_silu(f"{where}.norm1.silu", block.norm1.silu)
    check_attention(f"{where}.attn1", block.attn1, residual=False)
    expect(block.attn2 is None and block.pos_embed is None, f"{where} is of an unknown form")
    expect(not block.only_cross_attention, f"{where} has only cross-attention")
    expect(block._chunk_size is None, f"{where} computes its feed-forward in chunks")
    parts = [class_path(part) for part in block.ff.net]
    expect(parts == [_GELU, DROPOUT, LINEAR], f"{where}.ff is made of {', '.join(parts)}")


def _is_small(key: str) -> bool:
    """Whether a weight belongs to what a bf16 network computes in float32."""
    return key.startswith(("pos_embed.", "proj_out_")) or ".norm" in key


def _check_plain_norm(where: str, norm: Any) -> None:
    expect(class_path(norm) == LAYER_NORM, f"{where} is a {class_path(norm)}")
    expect(not norm.elementwise_affine, f"{where} has weights")


def _activation(gelu: Any) -> str:
    names = {"none": "gelu", "tanh": "gelu_tanh"}
    expect(gelu.approximate in names, f"a GELU is approximated by {gelu.approximate!r}")
    return names[gelu.approximate]
