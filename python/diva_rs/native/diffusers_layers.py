"""Layers that diffusers' models share, and whether each computes what its weights say and nothing else."""

import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import diva_rs._native as _native
from diva_rs.errors import ConfigError, WeightsError
from diva_rs.native.inspect import NotNative, check_modules, class_path, expect

TORCH = "torch.nn.modules."
MODELS = "diffusers.models."
ATTENTION = f"{MODELS}attention_processor.Attention"
RESNET = f"{MODELS}resnet.ResnetBlock2D"
DOWNSAMPLE = f"{MODELS}downsampling.Downsample2D"
CONV = f"{TORCH}conv.Conv2d"
LINEAR = f"{TORCH}linear.Linear"
GROUP_NORM = f"{TORCH}normalization.GroupNorm"
LAYER_NORM = f"{TORCH}normalization.LayerNorm"
SILU = f"{TORCH}activation.SiLU"
DROPOUT = f"{TORCH}dropout.Dropout"
MODULE_LIST = f"{TORCH}container.ModuleList"

_PROCESSORS = f"{MODELS}attention_processor."


def check_model(model: nn.Module, cls: str, allowed: Collection[str]) -> None:
    """NotNative unless the model is exactly of class `cls`, made of `allowed` classes."""
    expect(class_path(model) == cls, f"it is a {class_path(model)}")
    with warnings.catch_warnings():
        # diffusers warns of every look for an attribute that it finds in the configuration.
        warnings.simplefilter("ignore", FutureWarning)
        check_modules(model, allowed)


def network(
    kind: str, config: dict[str, Any], weights: dict[str, Tensor], fixed: dict[str, Tensor] | None = None
) -> _native.Network:
    """The native network; NotNative where the core refuses its configuration or its weights."""
    try:
        return _native.Network(kind, config, weights, fixed)
    except (ConfigError, WeightsError) as err:
        raise NotNative(str(err)) from err


def layers_of(root: nn.Module, cls: str) -> Iterator[tuple[str, Any]]:
    """The modules at and below `root` that are exactly of class `cls`, by name."""
    return ((name, module) for name, module in root.named_modules() if class_path(module) == cls)


def unrounded(exact: nn.Module | None, small: Callable[[str], bool]) -> dict[str, Tensor]:
    """The tensors of what a bf16 module was before it was rounded, as far as `small` picks them."""
    tensors = (
        () if exact is None else (*exact.named_parameters(remove_duplicate=False), *exact.named_buffers())
    )
    return {key: tensor for key, tensor in tensors if small(key)}


def check_silu(where: str, module: nn.Module) -> None:
    """NotNative unless the activation is SiLU."""
    expect(class_path(module) == SILU, f"{where} is a {class_path(module)}")


def check_conv(where: str, conv: Any, kernel: int, stride: int, padding: int) -> None:
    """NotNative unless a convolution has this geometry, a bias, and nothing else."""
    expect(class_path(conv) == CONV, f"{where} is a {class_path(conv)}")
    found = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    expected = ((kernel,) * 2, (stride,) * 2, (padding,) * 2, (1, 1), 1, "zeros")
    expect(found == expected and conv.bias is not None, f"{where} is {conv}, which is of an unknown form")


def check_attention(where: str, attention: Any, *, residual: bool = False, cross: bool = False) -> None:
    """NotNative unless an attention is softmax(q k^T / sqrt(d)) v and its projections.

    Args:
        where: its name.
        attention: a diffusers ``Attention``.
        residual: whether it is over pixels, normalises its input and adds it to its output.
        cross: whether keys and values may be of another width.
    """
    expect(class_path(attention) == ATTENTION, f"{where} is a {class_path(attention)}")
    _check_processor(where, attention)
    absent = ["spatial_norm", "norm_cross", "norm_q", "norm_k", "add_k_proj", "add_q_proj", "to_add_out"]
    for part in absent if residual else [*absent, "group_norm"]:
        expect(getattr(attention, part, None) is None, f"{where} has a {part}")
    if residual:
        expect(attention.group_norm is not None, f"{where} has no group_norm")
    expect(
        bool(attention.residual_connection) == residual,
        f"{where} adds its input to its output" if not residual else f"{where} adds no input to its output",
    )
    expect(attention.rescale_output_factor == 1, f"{where} scales its output")
    expect(not attention.fused_projections, f"{where} has fused projections")
    head_width = attention.to_q.out_features // attention.heads
    expect(attention.scale == head_width**-0.5, f"{where} scales its scores by {attention.scale}")
    if not cross:
        projections = (attention.to_q, attention.to_k, attention.to_v)
        widths = {width for layer in projections for width in (layer.in_features, layer.out_features)}
        expect(len(widths) == 1, f"{where} projects between different widths: {sorted(widths)}")
    expect(
        [class_path(part) for part in attention.to_out] == [LINEAR, DROPOUT],
        f"{where}.to_out is of an unknown form",
    )
    expect(attention.to_out[0].bias is not None, f"{where}.to_out has no bias")


def _check_processor(where: str, attention: Any) -> None:
    processor = attention.processor
    cls = f"{type(processor).__module__}.{type(processor).__qualname__}"
    expect(
        cls in (f"{_PROCESSORS}AttnProcessor2_0", f"{_PROCESSORS}AttnProcessor"),
        f"{where}.processor is a {cls}",
    )
    expect(
        type(processor).__call__.__module__ == type(processor).__module__, f"{where}.processor was replaced"
    )
    if cls == f"{_PROCESSORS}AttnProcessor":
        # This one computes the softmax in float32 where its options say so, in a model of any dtype.
        upcast = attention.upcast_attention or attention.upcast_softmax
        same = not upcast or attention.to_q.weight.dtype == torch.float32
        expect(same, f"{where} computes its softmax in float32")
