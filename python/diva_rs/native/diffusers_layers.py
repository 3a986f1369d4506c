"""Layers that diffusers' models share, and whether each computes what its weights say and nothing else."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs.native.inspect import expect, kind

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


def layers_of(root: nn.Module, cls: str) -> Iterator[tuple[str, Any]]:
    """The modules at and below `root` that are exactly of class `cls`, by name.

    >>> [name for name, _ in layers_of(nn.Sequential(nn.Tanh(), nn.SiLU()), SILU)]
    ['1']
    """
    return ((name, module) for name, module in root.named_modules() if kind(module) == cls)


def unrounded(exact: nn.Module | None, small: Callable[[str], bool]) -> dict[str, Tensor]:
    """The weights and buffers of what a bf16 module was before it was rounded, as far as `small` picks them.

    >>> sorted(unrounded(nn.LayerNorm(4), lambda key: key == "bias")), unrounded(None, bool)
    (['bias'], {})
    """
    tensors = (
        () if exact is None else (*exact.named_parameters(remove_duplicate=False), *exact.named_buffers())
    )
    return {key: tensor for key, tensor in tensors if small(key)}


def check_silu(where: str, module: nn.Module) -> None:
    """NotNative unless the activation is SiLU.

    >>> check_silu("act", nn.SiLU())
    """
    expect(kind(module) == SILU, f"{where} is a {kind(module)}")


def check_conv(where: str, conv: Any, kernel: int, stride: int, padding: int) -> None:
    """NotNative unless a convolution has this geometry, a bias, and nothing else.

    >>> check_conv("conv_in", nn.Conv2d(3, 8, 3, padding=1), 3, 1, 1)
    """
    expect(kind(conv) == CONV, f"{where} is a {kind(conv)}")
    found = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    expected = ((kernel,) * 2, (stride,) * 2, (padding,) * 2, (1, 1), 1, "zeros")
    expect(found == expected and conv.bias is not None, f"{where} is {conv}, which is of an unknown form")


def check_attention(where: str, attention: Any, *, residual: bool) -> None:
    """NotNative unless an attention is softmax(q k^T / sqrt(d)) v and its projections.

    Args:
        where: its name.
        attention: a diffusers ``Attention``.
        residual: whether it is one over pixels, which normalises its input and adds it to its output.

    >>> from diffusers.models.attention_processor import Attention
    >>> check_attention("attn1", Attention(16, heads=2, dim_head=8, bias=True), residual=False)
    >>> check_attention("attn1", Attention(16, heads=2, dim_head=8, scale_qk=False), residual=False)
    Traceback (most recent call last):
    ...
    diva_rs.native.inspect.NotNative: attn1 scales its scores by 1.0
    """
    expect(kind(attention) == ATTENTION, f"{where} is a {kind(attention)}")
    _check_processor(where, attention)
    absent = ["spatial_norm", "norm_cross", "norm_q", "norm_k", "add_k_proj", "add_q_proj", "to_add_out"]
    for part in absent if residual else [*absent, "group_norm"]:
        expect(getattr(attention, part, None) is None, f"{where} has a {part}")
    if residual:
        expect(attention.group_norm is not None, f"{where} has no group_norm")
    expect(
        bool(attention.residual_connection) == residual,
        f"{where} adds its input to its output, or does not, unlike others of its kind",
    )
    expect(attention.rescale_output_factor == 1, f"{where} scales its output")
    expect(not attention.fused_projections, f"{where} has fused projections")
    head_width = attention.to_q.out_features // attention.heads
    expect(attention.scale == head_width**-0.5, f"{where} scales its scores by {attention.scale}")
    widths = {layer.in_features for layer in (attention.to_q, attention.to_k, attention.to_v)}
    widths |= {layer.out_features for layer in (attention.to_q, attention.to_k, attention.to_v)}
    expect(len(widths) == 1, f"{where} projects between different widths: {sorted(widths)}")
    expect(
        [kind(part) for part in attention.to_out] == [LINEAR, DROPOUT],
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
        # This one computes the softmax in float32 where it is told to, whatever the model's dtype.
        upcast = attention.upcast_attention or attention.upcast_softmax
        same = not upcast or attention.to_q.weight.dtype == torch.float32
        expect(same, f"{where} computes its softmax in float32")
