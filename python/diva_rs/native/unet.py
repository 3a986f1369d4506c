"""diffusers' UNet2DConditionModel as a native network over the same weights."""

from typing import Any

from diva_rs.native import diffusers_layers as layers
from diva_rs.native.inspect import class_path, expect, one

_UNET = f"{layers.MODELS}unets.unet_2d_condition.UNet2DConditionModel"
_BLOCKS = f"{layers.MODELS}unets.unet_2d_blocks."
_TRANSFORMER = f"{layers.MODELS}transformers.transformer_2d.Transformer2DModel"
_LAYER = f"{layers.MODELS}attention.BasicTransformerBlock"
_FEED_FORWARD = f"{layers.MODELS}attention.FeedForward"
_GEGLU = f"{layers.MODELS}activations.GEGLU"
_UPSAMPLE = f"{layers.MODELS}upsampling.Upsample2D"
_SINUSOIDS = f"{layers.MODELS}embeddings.Timesteps"
_TIME_EMBEDDING = f"{layers.MODELS}embeddings.TimestepEmbedding"
_DOWN = (f"{_BLOCKS}DownBlock2D", f"{_BLOCKS}CrossAttnDownBlock2D")
_MID = (f"{_BLOCKS}UNetMidBlock2DCrossAttn",)
_UP = (f"{_BLOCKS}UpBlock2D", f"{_BLOCKS}CrossAttnUpBlock2D")
_ATTENDING = {_DOWN[1], _UP[1], *_MID}

_ALLOWED = layers.COMMON | {
    *(_UNET, *_DOWN, *_MID, *_UP, _UPSAMPLE, _TRANSFORMER, _LAYER, _FEED_FORWARD, _GEGLU, _SINUSOIDS),
    *(_TIME_EMBEDDING, layers.RESNET, layers.DOWNSAMPLE, layers.GROUP_NORM, layers.LAYER_NORM),
}
# What a bf16 network computes in float32: these modules at its top, and every norm and time_emb_proj.
_ENTRIES = {"conv_in", "conv_out", "time_embedding", "class_embedding", "add_embedding"}


def _is_small(key: str) -> bool:
    parts = key.split(".")
    return parts[0] in _ENTRIES or any("norm" in part or part == "time_emb_proj" for part in parts)


def unet_config(unet: Any) -> dict[str, Any]:
    """The native network's configuration but `text_time` and `checkpoint`, read from the modules.

    Only what the model's own ``forward`` reads from ``unet.config`` is taken from there.
    """
    _check_convolutions(unet)
    for name in ("encoder_hid_proj", "time_embed_act"):
        expect(getattr(unet, name) is None, f"it has a {name}")
    expect(class_path(unet.time_proj) == _SINUSOIDS, f"time_proj is a {class_path(unet.time_proj)}")
    expect(unet.conv_norm_out is not None, "it has no conv_norm_out")
    layers.check_silu("conv_act", unet.conv_act)
    expect(unet.num_upsamplers == len(unet.up_blocks) - 1, "an up block but the last does not upsample")
    resnets = [resnet for _, resnet in layers.layers_of(unet, layers.RESNET)]
    paddings = [down.padding for _, down in layers.layers_of(unet, layers.DOWNSAMPLE)]
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
        layers.check_silu("a ResNet's nonlinearity", resnet.nonlinearity)
        expect(resnet.upsample is None and resnet.downsample is None, "a ResNet changes the resolution")
        expect(resnet.time_emb_proj is not None, "a ResNet has no time_emb_proj")
        expect(not resnet.skip_time_act, "a ResNet takes the time embedding without activation")
    others = [resnet for resnet in resnets if not any(resnet is other for other in mid)]
    expect(all(resnet.output_scale_factor == 1 for resnet in others), "a ResNet scales its output")
    norms = [unet.conv_norm_out, *(resnet.norm1 for resnet in resnets), *(resnet.norm2 for resnet in resnets)]
    groups = [norm.num_groups for _, norm in layers.layers_of(unet, layers.GROUP_NORM)]
    return {
        "norm_num_groups": one("num_groups of the norms", groups),
        "norm_eps": one("eps of the ResNets' norms", [norm.eps for norm in norms]),
        "resnet_time_scale_shift": one("time_embedding_norm", [m.time_embedding_norm for m in resnets]),
    }


def _time_fields(unet: Any) -> dict[str, Any]:
    config = unet.config
    embeddings = {None: None, "projection": _TIME_EMBEDDING, "simple_projection": layers.LINEAR}
    expect(config.class_embed_type in embeddings, f"class_embed_type is {config.class_embed_type!r}")
    expect(not config.class_embeddings_concat, "its class embedding is concatenated")
    expected, found = embeddings[config.class_embed_type], unet.class_embedding
    fits = (None if found is None else class_path(found)) == expected
    expect(fits, "its class_embedding is not what its configuration says")
    added = config.addition_embed_type
    expect(added in (None, "text_time"), f"addition_embed_type is {added!r}")
    sinusoids = [unet.time_proj] if added is None else [unet.time_proj, unet.add_time_proj]
    expect(all(time.scale == 1 for time in sinusoids), "its timesteps are scaled")
    expect(unet.time_proj.num_channels == unet.conv_in.out_channels, "time_proj is not as wide as conv_in")
    for name, embedding in layers.layers_of(unet, _TIME_EMBEDDING):
        layers.check_silu(f"{name}.act", embedding.act)
        plain = embedding.cond_proj is None and embedding.post_act is None
        expect(plain, f"{name} has a cond_proj or a post_act")
    width = None
    if found is not None:
        width = (found if expected == layers.LINEAR else found.linear_1).in_features
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
    for name, attention in layers.layers_of(unet, layers.ATTENTION):
        layers.check_attention(name, attention, cross=True)
    for name, layer in layers.layers_of(unet, _LAYER):
        expect(layer.norm_type == "layer_norm", f"{name}.norm_type is {layer.norm_type!r}")
        expect(layer.pos_embed is None and layer.attn2 is not None, f"{name} is of an unknown form")
        expect(not layer.only_cross_attention, f"{name} has only cross-attention")
        expect(not layer.attn1.is_cross_attention, f"{name}.attn1 is a cross-attention")
        parts = [class_path(part) for part in layer.ff.net]
        expect(parts == [_GEGLU, layers.DROPOUT, layers.LINEAR], f"{name}.ff is not a GEGLU feed-forward")
    transformers = [transformer for _, transformer in layers.layers_of(unet, _TRANSFORMER)]
    expect(all(t.is_input_continuous for t in transformers), "a transformer is not over images")
    widths = [layer.attn2.to_k.in_features for _, layer in layers.layers_of(unet, _LAYER)]
    linear = [transformer.use_linear_projection for transformer in transformers]
    group_eps = [transformer.norm.eps for transformer in transformers]
    layer_eps = [norm.eps for _, norm in layers.layers_of(unet, layers.LAYER_NORM)]
    return {
        "cross_attention_dim": one("cross_attention_dim", widths),
        "use_linear_projection": one("use_linear_projection", linear),
        "attention_norm_eps": (
            one("eps of the transformers' group norms", group_eps),
            one("eps of the layer norms", layer_eps),
        ),
    }


def _check_convolutions(unet: Any) -> None:
    samplers = {f"{name}.conv": down for name, down in layers.layers_of(unet, layers.DOWNSAMPLE)}
    for name, conv in layers.layers_of(unet, layers.CONV):
        down = samplers.get(name)
        size = conv.kernel_size[0]
        stride, padding = (1, size // 2) if down is None else (2, down.padding)
        geometry = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        expected = ((size, size), (stride, stride), (padding, padding), (1, 1))
        plain = size in (1, 3) and conv.groups == 1 and conv.padding_mode == "zeros"
        expect(geometry == expected and plain, f"{name} is {conv}, which is of an unknown form")
    for name, sampler in [*layers.layers_of(unet, layers.DOWNSAMPLE), *layers.layers_of(unet, _UPSAMPLE)]:
        expect(sampler.norm is None and sampler.use_conv, f"{name} is of an unknown form")
    for name, up in layers.layers_of(unet, _UPSAMPLE):
        plain = up.interpolate and not up.use_conv_transpose and up.name == "conv"
        expect(plain, f"{name} is of an unknown form")


def _block(where: str, block: Any, classes: tuple[str, ...]) -> dict[str, Any]:
    """The transformer layers beside each ResNet, and the number of heads."""
    expect(class_path(block) in classes, f"{where} is a {class_path(block)}")
    # FreeU (arXiv 2309.11497) works through attributes that its absence leaves unset or None.
    free = any(getattr(block, name, None) is not None for name in ("s1", "s2", "b1", "b2"))
    expect(not free, f"{where} has FreeU enabled")
    attends = class_path(block) in _ATTENDING
    if not attends:
        return {"depths": [0] * len(block.resnets), "heads": 1}
    depths = [len(transformer.transformer_blocks) for transformer in block.attentions]
    fits = len(block.resnets) == len(depths) + (classes == _MID)
    expect(fits, f"{where} has more or fewer transformers than ResNets")
    heads = [attention.heads for _, attention in layers.layers_of(block, layers.ATTENTION)]
    return {"depths": depths, "heads": one(f"number of heads in {where}", heads)}


UNET = layers.Denoiser("unet_2d_condition", {_UNET: unet_config}, _ALLOWED, _is_small)
