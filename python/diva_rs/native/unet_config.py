"""What a UNet2DConditionModel computes, read from its modules, or why the native network cannot."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from diva_rs.native.inspect import expect, kind, one

_TORCH = "torch.nn.modules."
_MODELS = "diffusers.models."
UNET = f"{_MODELS}unets.unet_2d_condition.UNet2DConditionModel"
_BLOCKS = f"{_MODELS}unets.unet_2d_blocks."
_RESNET = f"{_MODELS}resnet.ResnetBlock2D"
_TRANSFORMER = f"{_MODELS}transformers.transformer_2d.Transformer2DModel"
_LAYER = f"{_MODELS}attention.BasicTransformerBlock"
_FEED_FORWARD = f"{_MODELS}attention.FeedForward"
_ATTENTION = f"{_MODELS}attention_processor.Attention"
_GEGLU = f"{_MODELS}activations.GEGLU"
_DOWNSAMPLE = f"{_MODELS}downsampling.Downsample2D"
_UPSAMPLE = f"{_MODELS}upsampling.Upsample2D"
_SINUSOIDS = f"{_MODELS}embeddings.Timesteps"
_TIME_EMBEDDING = f"{_MODELS}embeddings.TimestepEmbedding"
_CONV = f"{_TORCH}conv.Conv2d"
_LINEAR = f"{_TORCH}linear.Linear"
_GROUP_NORM = f"{_TORCH}normalization.GroupNorm"
_LAYER_NORM = f"{_TORCH}normalization.LayerNorm"
_SILU = f"{_TORCH}activation.SiLU"
_DROPOUT = f"{_TORCH}dropout.Dropout"
_DOWN = (f"{_BLOCKS}DownBlock2D", f"{_BLOCKS}CrossAttnDownBlock2D")
_MID = (f"{_BLOCKS}UNetMidBlock2DCrossAttn",)
_UP = (f"{_BLOCKS}UpBlock2D", f"{_BLOCKS}CrossAttnUpBlock2D")

# Every class of module that the native network knows.
ALLOWED = {
    *(UNET, *_DOWN, *_MID, *_UP, _RESNET, _DOWNSAMPLE, _UPSAMPLE, _TRANSFORMER, _LAYER, _ATTENTION),
    *(_FEED_FORWARD, _GEGLU, _SINUSOIDS, _TIME_EMBEDDING, _CONV, _LINEAR, _GROUP_NORM, _LAYER_NORM),
    *(_SILU, _DROPOUT, f"{_TORCH}container.ModuleList"),
}
_PROCESSORS = (
    f"{_MODELS}attention_processor.AttnProcessor2_0",
    f"{_MODELS}attention_processor.AttnProcessor",
)


def unet_config(unet: Any) -> dict[str, Any]:
    """The fields of ``_native.UNet2DCondition``'s config, read from the modules that compute with them.

    Only what the model's own ``forward`` reads from ``unet.config`` is taken from there. ``text_time`` is not
    among them: it depends on the image.

    Raises:
        NotNative: a value that the native network does not know.

    >>> unet_config(unet)["down_blocks"]
    [('CrossAttnDownBlock2D', [1], 2), ('DownBlock2D', [0], 1)]
    """
    _check_convolutions(unet)
    for name in ("encoder_hid_proj", "time_embed_act"):
        expect(getattr(unet, name) is None, f"it has a {name}")
    expect(kind(unet.time_proj) == _SINUSOIDS, f"time_proj is a {kind(unet.time_proj)}")
    expect(unet.conv_norm_out is not None, "it has no conv_norm_out")
    _silu("conv_act", unet.conv_act)
    expect(unet.num_upsamplers == len(unet.up_blocks) - 1, "an up block but the last does not upsample")
    resnets = [resnet for _, resnet in _all(unet, _RESNET)]
    paddings = [down.padding for _, down in _all(unet, _DOWNSAMPLE)]
    mid = [] if unet.mid_block is None else list(unet.mid_block.resnets)
    return {
        "in_channels": unet.conv_in.in_channels,
        "out_channels": unet.conv_out.out_channels,
        "block_out_channels": [block.resnets[0].out_channels for block in unet.down_blocks],
        "down_blocks": [_block(f"down_blocks.{i}", block, _DOWN) for i, block in enumerate(unet.down_blocks)],
        "mid_block": None if unet.mid_block is None else _block("mid_block", unet.mid_block, _MID),
        "up_blocks": [_block(f"up_blocks.{i}", block, _UP) for i, block in enumerate(unet.up_blocks)],
        "center_input_sample": unet.config.center_input_sample,
        "downsample_padding": one("downsample padding", paddings or [1]),
        "mid_block_scale_factor": one("output_scale_factor", [m.output_scale_factor for m in mid] or [1.0]),
        **_resnet_fields(unet, resnets, mid),
        **_time_fields(unet),
        **_attention_fields(unet),
    }


def _resnet_fields(unet: Any, resnets: list[Any], mid: list[Any]) -> dict[str, Any]:
    for resnet in resnets:
        _silu("a ResNet's nonlinearity", resnet.nonlinearity)
        expect(resnet.upsample is None and resnet.downsample is None, "a ResNet changes the resolution")
        expect(resnet.time_emb_proj is not None, "a ResNet has no time_emb_proj")
        expect(not resnet.skip_time_act, "a ResNet takes the time embedding without activation")
    others = [resnet for resnet in resnets if not any(resnet is other for other in mid)]
    expect(all(resnet.output_scale_factor == 1 for resnet in others), "a ResNet scales its output")
    norms = [unet.conv_norm_out, *(resnet.norm1 for resnet in resnets), *(resnet.norm2 for resnet in resnets)]
    groups = [norm.num_groups for _, norm in _all(unet, _GROUP_NORM)]
    return {
        "norm_num_groups": one("num_groups of the norms", groups),
        "norm_eps": one("eps of the ResNets' norms", [norm.eps for norm in norms]),
        "resnet_time_scale_shift": one("time_embedding_norm", [m.time_embedding_norm for m in resnets]),
    }


def _time_fields(unet: Any) -> dict[str, Any]:
    config = unet.config
    embeddings = {None: None, "projection": _TIME_EMBEDDING, "simple_projection": _LINEAR}
    expect(config.class_embed_type in embeddings, f"class_embed_type is {config.class_embed_type!r}")
    expect(not config.class_embeddings_concat, "its class embedding is concatenated")
    expected, found = embeddings[config.class_embed_type], unet.class_embedding
    fits = (None if found is None else kind(found)) == expected
    expect(fits, "its class_embedding is not what its configuration says")
    added = config.addition_embed_type
    expect(added in (None, "text_time"), f"addition_embed_type is {added!r}")
    sinusoids = [unet.time_proj] if added is None else [unet.time_proj, unet.add_time_proj]
    expect(all(time.scale == 1 for time in sinusoids), "its timesteps are scaled")
    expect(unet.time_proj.num_channels == unet.conv_in.out_channels, "time_proj is not as wide as conv_in")
    for name, embedding in _all(unet, _TIME_EMBEDDING):
        _silu(f"{name}.act", embedding.act)
        plain = embedding.cond_proj is None and embedding.post_act is None
        expect(plain, f"{name} has a cond_proj or a post_act")
    width = None
    if found is not None:
        width = (found if expected == _LINEAR else found.linear_1).in_features
    elif added is not None:
        width = unet.add_embedding.linear_1.in_features
    return {
        "flip_sin_to_cos": one("flip_sin_to_cos", [time.flip_sin_to_cos for time in sinusoids]),
        "freq_shift": one("freq_shift", [time.downscale_freq_shift for time in sinusoids]),
        "time_embedding_dim": unet.time_embedding.linear_1.out_features,
        "class_embed_type": config.class_embed_type,
        "projection_class_embeddings_input_dim": width,
    }


def _attention_fields(unet: Any) -> dict[str, Any]:
    for name, attention in _all(unet, _ATTENTION):
        _check_attention(name, attention)
    for name, layer in _all(unet, _LAYER):
        expect(layer.norm_type == "layer_norm", f"{name}.norm_type is {layer.norm_type!r}")
        expect(layer.pos_embed is None and layer.attn2 is not None, f"{name} is of an unknown form")
        expect(not layer.only_cross_attention, f"{name} has only cross-attention")
        expect(not layer.attn1.is_cross_attention, f"{name}.attn1 is a cross-attention")
        parts = [kind(part) for part in layer.ff.net]
        expect(parts == [_GEGLU, _DROPOUT, _LINEAR], f"{name}.ff is not a GEGLU feed-forward")
    transformers = [transformer for _, transformer in _all(unet, _TRANSFORMER)]
    expect(all(t.is_input_continuous for t in transformers), "a transformer is not over images")
    layers = [layer for _, layer in _all(unet, _LAYER)]
    widths = [layer.attn2.to_k.in_features for layer in layers]
    linear = [transformer.use_linear_projection for transformer in transformers]
    group_eps = [transformer.norm.eps for transformer in transformers]
    layer_eps = [norm.eps for _, norm in _all(unet, _LAYER_NORM)]
    return {
        "cross_attention_dim": one("cross_attention_dim", widths),
        "use_linear_projection": one("use_linear_projection", linear),
        "attention_norm_eps": (
            one("eps of the transformers' group norms", group_eps),
            one("eps of the layer norms", layer_eps),
        ),
    }


def _check_attention(name: str, attention: Any) -> None:
    processor = attention.processor
    cls = f"{type(processor).__module__}.{type(processor).__qualname__}"
    expect(cls in _PROCESSORS, f"{name}.processor is a {cls}")
    own = type(processor).__call__.__module__ == type(processor).__module__
    expect(own, f"{name}.processor's __call__ was replaced")
    if cls == _PROCESSORS[1]:
        # This one alone computes the softmax in float32 where it is told to, whatever the model's dtype.
        upcast = attention.upcast_attention or attention.upcast_softmax
        expect(not upcast, f"{name} computes its softmax in float32")
    for part in ("group_norm", "spatial_norm", "norm_cross", "norm_q", "norm_k", "add_k_proj"):
        expect(getattr(attention, part, None) is None, f"{name} has a {part}")
    expect(not attention.residual_connection, f"{name} adds its input to its output")
    expect(attention.rescale_output_factor == 1, f"{name} scales its output")
    expect(not attention.fused_projections, f"{name} has fused projections")
    width = attention.to_q.out_features / attention.heads
    expect(attention.scale == width**-0.5, f"{name} scales its scores by {attention.scale}")
    parts = [kind(part) for part in attention.to_out]
    expect(parts == [_LINEAR, _DROPOUT], f"{name}.to_out is of an unknown form")


def _check_convolutions(unet: Any) -> None:
    samplers = {f"{name}.conv": down for name, down in _all(unet, _DOWNSAMPLE)}
    for name, conv in _all(unet, _CONV):
        down = samplers.get(name)
        size = conv.kernel_size[0]
        stride, padding = (1, size // 2) if down is None else (2, down.padding)
        geometry = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        expected = ((size, size), (stride, stride), (padding, padding), (1, 1))
        plain = size in (1, 3) and conv.groups == 1 and conv.padding_mode == "zeros"
        expect(geometry == expected and plain, f"{name} is {conv}, which is of an unknown form")
    for name, sampler in [*_all(unet, _DOWNSAMPLE), *_all(unet, _UPSAMPLE)]:
        expect(sampler.norm is None and sampler.use_conv, f"{name} is of an unknown form")
    for name, up in _all(unet, _UPSAMPLE):
        plain = up.interpolate and not up.use_conv_transpose and up.name == "conv"
        expect(plain, f"{name} is of an unknown form")


def _block(where: str, block: Any, kinds: tuple[str, ...]) -> tuple[str, list[int], int]:
    """Its type by diffusers' name, the transformer layers beside each ResNet, and the number of heads."""
    expect(kind(block) in kinds, f"{where} is a {kind(block)}")
    # FreeU (arXiv 2309.11497) works through attributes that its absence leaves unset or None.
    free = any(getattr(block, name, None) is not None for name in ("s1", "s2", "b1", "b2"))
    expect(not free, f"{where} has FreeU enabled")
    name = type(block).__name__
    if "CrossAttn" not in name:
        return name, [0] * len(block.resnets), 1
    depths = [len(transformer.transformer_blocks) for transformer in block.attentions]
    expect(len(block.resnets) == len(depths) + (kinds == _MID), f"{where} has not one transformer per ResNet")
    heads = [attention.heads for _, attention in _all(block, _ATTENTION)]
    return name, depths, one(f"number of heads in {where}", heads)


def _silu(where: str, module: Any) -> None:
    expect(kind(module) == _SILU, f"{where} is a {kind(module)}")


def _all(root: nn.Module, cls: str) -> Iterator[tuple[str, Any]]:
    return ((name, module) for name, module in root.named_modules() if kind(module) == cls)
