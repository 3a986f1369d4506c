"""What vision towers are made of, read layer by layer: every value a native tower takes from a module.

Each function answers with a plain value, or raises NotNative for a layer that computes something else.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from diva_rs.native.inspect import NotNative, class_path, expect, one

_TORCH = "torch.nn.modules"
# "NonDynamicallyQuantizableLinear" is the output projection of nn.MultiheadAttention.
_PLAIN = (
    *("linear.Linear", "linear.Identity", "linear.NonDynamicallyQuantizableLinear", "conv.Conv2d"),
    *("normalization.LayerNorm", "activation.GELU", "activation.MultiheadAttention", "dropout.Dropout"),
    *("container.Sequential", "container.ModuleList", "sparse.Embedding"),
)
PLAIN = frozenset(f"{_TORCH}.{name}" for name in _PLAIN)
# LayerNorms of the libraries. The second kind computes in float32 for every input.
NORMS = frozenset(
    {f"{_TORCH}.normalization.LayerNorm", "open_clip.transformer.LayerNorm", "timm.layers.norm.LayerNorm"}
)
NORMS_IN_FLOAT32 = frozenset({"open_clip.transformer.LayerNormFp32", "clip.model.LayerNorm"})
ACTIVATIONS = {
    "open_clip.transformer.QuickGELU": "quick_gelu",
    "clip.model.QuickGELU": "quick_gelu",
    "timm.layers.activations.QuickGELU": "quick_gelu",
    "timm.layers.activations.GELU": "gelu",
    "timm.layers.activations.GELUTanh": "gelu_tanh",
    "transformers.activations.QuickGELUActivation": "quick_gelu",
    "transformers.activations.GELUActivation": "gelu",
    "transformers.activations.PytorchGELUTanh": "gelu_tanh",  # as GELUTanh was called in transformers 4.x
    "transformers.activations.GELUTanh": "gelu_tanh",
    "transformers.activations.NewGELUActivation": "gelu_tanh",
}
_SLOTS = {"gelu", "act", "activation_fn"}  # where the libraries keep the activation of an MLP


def check_weightless(root: nn.Module) -> None:
    """NotNative when a layer without weights, which has no key, computes something out of its place."""
    for name, module in root.named_modules():
        active = isinstance(module, nn.GELU) or class_path(module) in ACTIVATIONS
        expect(not active or name.rpartition(".")[2] in _SLOTS, f"{name} is a {class_path(module)}")
        if isinstance(module, nn.LayerNorm):
            expect(module.weight is not None and module.bias is not None, f"{name} has no weight or no bias")


def activation(module: nn.Module) -> str:
    """The native name of an activation layer."""
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    expect(class_path(module) in ACTIVATIONS, f"its activation is a {class_path(module)}")
    return ACTIVATIONS[class_path(module)]


def eps(norms: Iterable[nn.Module], dtype: torch.dtype) -> float:
    """The eps that all LayerNorms share."""
    found = []
    for norm in norms:
        known = NORMS if dtype == torch.float64 else NORMS | NORMS_IN_FLOAT32
        expect(class_path(norm) in known, f"a norm is a {class_path(norm)} over {dtype}")
        n: Any = norm
        expect(len(n.normalized_shape) == 1, f"a LayerNorm is over {n.normalized_shape}")
        expect(not getattr(n, "_fast_norm", False), "timm's fast norm is switched on")
        found.append(float(n.eps))
    return float(one("eps of LayerNorm", found))


def patch(conv: Any) -> tuple[int, int]:
    """(height, width) of the patches of a patch embedding."""
    expect(class_path(conv) == f"{_TORCH}.conv.Conv2d", f"its patch embedding is a {class_path(conv)}")
    plain = conv.padding in ((0, 0), "valid") and conv.dilation == (1, 1) and conv.groups == 1
    plain = plain and conv.in_channels == 3 and conv.stride == conv.kernel_size
    expect(plain, f"its patch embedding is {conv}: not one product per patch")
    return (int(conv.kernel_size[0]), int(conv.kernel_size[1]))


def absent(where: str, module: nn.Module | None) -> None:
    """NotNative unless there is no layer here (None or nn.Identity)."""
    expect(not present(module), f"{where} is a {class_path(module)}")


def present(module: nn.Module | None) -> bool:
    """Whether there is a layer here."""
    return module is not None and class_path(module) != f"{_TORCH}.linear.Identity"


def all_or_none(what: str, modules: Sequence[nn.Module | None]) -> bool:
    """Whether every block has the layer; NotNative when only some do."""
    return bool(one(f"whether there is {what}", (present(module) for module in modules)))


def linears(modules: Iterable[Any]) -> bool:
    """Whether these linear layers have a bias, all of them or none."""
    found = []
    for module in modules:
        expect(isinstance(module, nn.Linear), f"a {class_path(module)} stands in the place of a linear layer")
        found.append(module.bias is not None)
    return bool(one("bias", found))


def attention_heads(attention: Any, *, batch_first: bool) -> int:
    """Heads of a plain self-attention nn.MultiheadAttention that is fed as `batch_first` says."""
    name = class_path(attention)
    expect(name == f"{_TORCH}.activation.MultiheadAttention", f"its attention is a {name}")
    held = attention.in_proj_weight is not None and attention.in_proj_bias is not None
    more = attention.bias_k is not None or attention.bias_v is not None or attention.add_zero_attn
    expect(held and not more, "its nn.MultiheadAttention has other weights than in_proj and out_proj")
    fed = attention.batch_first == batch_first
    expect(fed, "an nn.MultiheadAttention is not fed along its own batch axis")
    return int(attention.num_heads)


def scaled(attention: Any) -> None:
    """NotNative unless attention divides by the square root of the head's width."""
    expect(attention.scale == attention.head_dim**-0.5, f"its attention is scaled by {attention.scale}")


def head_layers(inside: Iterable[nn.Module], name_of: Callable[[nn.Module], str]) -> list[tuple[str, str]]:
    """(layer, key) of the layers that a library applies after pooling and that cannot wait."""
    layers = []
    for layer in inside:
        found: Any = layer
        if class_path(layer) in NORMS | NORMS_IN_FLOAT32:
            layers.append(("norm", name_of(layer)))
        elif class_path(layer) == f"{_TORCH}.linear.Linear":
            layers.append(("linear" if found.bias is None else "linear-bias", name_of(layer)))
        elif class_path(layer) == "timm.layers.mlp.Mlp":
            absent("the norm of the head's Mlp", found.norm)
            usual = linears([found.fc1]) and activation(found.act) == "gelu"
            expect(usual, "its head's Mlp is not timm's default")
            layers.append(("mlp-bias" if linears([found.fc2]) else "mlp", name_of(layer)))
        elif class_path(layer) != f"{_TORCH}.dropout.Dropout":  # which check_modules found to be at rest
            raise NotNative(f"its head has a {class_path(layer)}")
    return layers
