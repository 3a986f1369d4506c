"""The encoder of diffusers' AutoencoderKL as a native network over the same weights."""

import inspect
from typing import Any

from torch import Tensor, nn

import diva_rs._native as _native
from diva_rs.native import diffusers_layers as layers
from diva_rs.native.inspect import check_modules, check_weights, class_path, expect, one

_VAE = f"{layers.MODELS}autoencoders.autoencoder_kl.AutoencoderKL"
_ENCODER = f"{layers.MODELS}autoencoders.vae.Encoder"
_HOOKED = "diffusers.utils.accelerate_utils"  # of the functions that `apply_forward_hook` returns
_BLOCKS = f"{layers.MODELS}unets.unet_2d_blocks."
_DOWN = f"{_BLOCKS}DownEncoderBlock2D"
_MID = f"{_BLOCKS}UNetMidBlock2D"

ALLOWED = layers.COMMON | {_ENCODER, _DOWN, _MID, layers.RESNET, layers.DOWNSAMPLE, layers.GROUP_NORM}


def native_vae(module: nn.Module) -> _native.Network:
    """The native encoder that gives exactly the latents that a diffusers ``AutoencoderKL`` does, scaled.

    The weights share their storage. Only the encoder is looked at: the decoder may be anything.
    """
    vae: Any = module
    expect(class_path(vae) == _VAE, f"it is a {class_path(vae)}")
    _check_model(vae)
    weights: dict[str, Tensor] = {}
    for name, part in (("encoder", vae.encoder), ("quant_conv", vae.quant_conv)):
        if part is not None:
            check_modules(part, ALLOWED)
            weights |= dict(part.named_parameters(name, remove_duplicate=False))
            weights |= dict(part.named_buffers(name))
    check_weights(weights.items())
    return layers.network("autoencoder_kl_encoder", vae_config(vae), weights)


def vae_config(vae: Any) -> dict[str, Any]:
    """The native encoder's configuration, read from the modules.

    Only what turns the posterior into latents is taken from ``vae.config``: no module computes it.
    """
    encoder = vae.encoder
    _check_layers(encoder)
    norms = [norm for _, norm in layers.layers_of(encoder, layers.GROUP_NORM)]
    if vae.quant_conv is not None:
        layers.check_conv("quant_conv", vae.quant_conv, 1, 1, 0)
    config: Any = vae.config
    shift = getattr(config, "shift_factor", None)
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    per_channel = None if mean is None or std is None else ([float(m) for m in mean], [float(s) for s in std])
    return {
        "in_channels": encoder.conv_in.in_channels,
        "latent_channels": encoder.conv_out.out_channels // 2,
        "block_out_channels": [block.resnets[0].out_channels for block in encoder.down_blocks],
        "layers_per_block": one("layers_per_block", [len(block.resnets) for block in encoder.down_blocks]),
        "mid_layers": len(encoder.mid_block.resnets) - 1,
        "mid_heads": _mid_heads(encoder.mid_block),
        "norm_num_groups": one("num_groups of the norms", [norm.num_groups for norm in norms]),
        "norm_eps": one("eps of the norms", [norm.eps for norm in norms]),
        "quant_conv": vae.quant_conv is not None,
        "scaling": {
            "factor": float(config.scaling_factor),
            "shift": None if shift is None else float(shift),
            "channels": per_channel,
        },
    }


def _check_model(vae: Any) -> None:
    expect(not vae.use_tiling, "tiling is enabled, which encodes large images in tiles")
    expect(class_path(vae.encoder) == _ENCODER, f"encoder is a {class_path(vae.encoder)}")
    # `encode` is not a forward, so `check_modules` does not check it.
    for name in ("encode", "_encode"):
        method = getattr(type(vae), name)
        while method.__module__ == _HOOKED:  # before diffusers 0.42 the decorator does not name what it wraps
            method = inspect.getclosurevars(method).nonlocals["method"]
        own = method.__module__ == type(vae).__module__
        expect(own and name not in vars(vae), f"its {name} was replaced")
    # accelerate moves the weights of a model with such a hook to the device and away again.
    hooked = {name for name, part in vae.named_modules() if hasattr(part, "_hf_hook")}
    expect(all("decoder" in name for name in hooked), "it is offloaded by accelerate")


def _check_layers(encoder: Any) -> None:
    layers.check_conv("encoder.conv_in", encoder.conv_in, 3, 1, 1)
    layers.check_conv("encoder.conv_out", encoder.conv_out, 3, 1, 1)
    layers.check_silu("encoder.conv_act", encoder.conv_act)
    for name, resnet in layers.layers_of(encoder, layers.RESNET):
        where = f"encoder.{name}"
        layers.check_silu(f"{where}.nonlinearity", resnet.nonlinearity)
        layers.check_conv(f"{where}.conv1", resnet.conv1, 3, 1, 1)
        layers.check_conv(f"{where}.conv2", resnet.conv2, 3, 1, 1)
        if resnet.conv_shortcut is not None:
            layers.check_conv(f"{where}.conv_shortcut", resnet.conv_shortcut, 1, 1, 0)
        plain = resnet.upsample is None and resnet.downsample is None and resnet.time_emb_proj is None
        expect(plain and resnet.time_embedding_norm == "default", f"{where} is of an unknown form")
        expect(resnet.output_scale_factor == 1, f"{where} scales its output")
    last = len(encoder.down_blocks) - 1
    for i, block in enumerate(encoder.down_blocks):
        where = f"encoder.down_blocks.{i}"
        expect(class_path(block) == _DOWN, f"{where} is a {class_path(block)}")
        samplers = block.downsamplers or ()
        expect(len(samplers) == int(i != last), f"{where} has other downsamplers")
        for sampler in samplers:
            plain = sampler.norm is None and sampler.use_conv and sampler.padding == 0
            expect(
                class_path(sampler) == layers.DOWNSAMPLE and plain,
                f"{where}.downsamplers is of an unknown form",
            )
            layers.check_conv(f"{where}.downsamplers.conv", sampler.conv, 3, 2, 0)


def _mid_heads(mid: Any) -> int | None:
    expect(class_path(mid) == _MID, f"encoder.mid_block is a {class_path(mid)}")
    expect(len(mid.attentions) == len(mid.resnets) - 1, "encoder.mid_block is of an unknown form")
    if all(attention is None for attention in mid.attentions):
        return None
    for i, attention in enumerate(mid.attentions):
        layers.check_attention(f"encoder.mid_block.attentions.{i}", attention, residual=True)
    return int(one("number of heads", [attention.heads for attention in mid.attentions]))
