"""Layers that diffusers' models share, and whether each computes what its weights say and nothing else."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import diva_rs._native as _native
from diva_rs.diffusion.families.family import NativePlan
from diva_rs.errors import ConfigError, WeightsError
from diva_rs.native.inspect import NotNative, check_modules, check_weights, class_path, expect

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
COMMON = frozenset({ATTENTION, CONV, LINEAR, SILU, DROPOUT, MODULE_LIST})


class Denoiser(NamedTuple):
    """What the native networks of one kind are made of."""

    kind: str  # of `_native.Network`
    # By a model's class: its configuration but for the plan's fields and `checkpoint`.
    configs: Mapping[str, Callable[[Any], dict[str, Any]]]
    allowed: frozenset[str]  # every class of module that the native network computes
    small: Callable[[str], bool]  # whether a bf16 network computes in float32 with this weight
    trains: bool = False  # whether its weights may train

    def build(
        self,
        model: nn.Module,
        plan: NativePlan,
        checkpoint: bool = False,
        exact: nn.Module | None = None,
        train: str | None = None,
    ) -> _native.Network:
        """The native network that computes exactly what `model` does, or NotNative.

        The weights share their storage and get no gradient, unless `train` names the precision of the matrix
        products of a network that trains. Predictions have the model's dtype, the device of
        the noisy latents, and no learned variance. With bf16 weights matrix products run in bf16 and the rest
        in float32, which is then the predictions' dtype. With `checkpoint` a step runs each block twice
        instead of keeping its activations. `exact` is what the model was before it was rounded to bf16: what
        runs in float32 takes its weights unrounded, which costs next to nothing and saves a quarter of the
        error.
        """
        expect(class_path(model) in self.configs, f"it is a {class_path(model)}")
        expect(train is None or self.trains, "it trains")
        with warnings.catch_warnings():
            # diffusers warns of every look for an attribute that it finds in the configuration.
            warnings.simplefilter("ignore", FutureWarning)
            check_modules(model, self.allowed)
        config = {**self.configs[class_path(model)](model), **plan.fields, "checkpoint": checkpoint}
        if train is not None:
            config["train"] = train
        weights: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        check_weights(weights.items())
        # The positions of a DiT: diffusers leaves them in float32 when it loads the weights in another dtype.
        buffers = dict(model.named_buffers())
        if buffers:
            check_weights(buffers.items())
            same = next(iter(buffers.values())).device == next(iter(weights.values())).device
            expect(same, "its positions are on another device than its weights")
        weights |= buffers
        if exact is not None:
            tensors = (*exact.named_parameters(remove_duplicate=False), *exact.named_buffers())
            # Copies: one tensor that was loaded from a file keeps the whole file in memory.
            weights |= {key: tensor.detach().clone() for key, tensor in tensors if self.small(key)}
        return network(self.kind, config, weights, dict(plan.fixed))


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
    """NotNative unless a diffusers ``Attention`` is softmax(q k^T / sqrt(d)) v and its projections.

    `residual`: whether it is over pixels, normalises its input and adds it to its output. `cross`: whether
    keys and values may be of another width.
    """
    expect(class_path(attention) == ATTENTION, f"{where} is a {class_path(attention)}")
    _check_processor(where, attention)
    absent = ["spatial_norm", "norm_cross", "norm_q", "norm_k", "add_k_proj", "add_q_proj", "to_add_out"]
    for part in absent:
        expect(getattr(attention, part, None) is None, f"{where} has a {part}")
    normed = attention.group_norm is not None
    expect(normed == residual, f"{where} has {'no' if residual else 'a'} group_norm")
    adds = bool(attention.residual_connection) == residual
    expect(adds, f"{where} adds {'no' if residual else 'its'} input to its output")
    expect(attention.rescale_output_factor == 1, f"{where} scales its output")
    expect(not attention.fused_projections, f"{where} has fused projections")
    head_width = attention.to_q.out_features // attention.heads
    expect(attention.scale == head_width**-0.5, f"{where} scales its scores by {attention.scale}")
    if not cross:
        projections = (attention.to_q, attention.to_k, attention.to_v)
        widths = {width for layer in projections for width in (layer.in_features, layer.out_features)}
        expect(len(widths) == 1, f"{where} projects between different widths: {sorted(widths)}")
    plain = [class_path(part) for part in attention.to_out] == [LINEAR, DROPOUT]
    expect(plain and attention.to_out[0].bias is not None, f"{where}.to_out is of an unknown form")


def _check_processor(where: str, attention: Any) -> None:
    processor = attention.processor
    cls, classic = class_path(processor), f"{MODELS}attention_processor.AttnProcessor"
    expect(cls in (f"{classic}2_0", classic), f"{where}.processor is a {cls}")
    own = type(processor).__call__.__module__ == type(processor).__module__
    expect(own, f"{where}.processor was replaced")
    if cls == classic:
        # This one computes the softmax in float32 where its options say so, in a model of any dtype.
        upcast = attention.upcast_attention or attention.upcast_softmax
        same = not upcast or attention.to_q.weight.dtype == torch.float32
        expect(same, f"{where} computes its softmax in float32")
