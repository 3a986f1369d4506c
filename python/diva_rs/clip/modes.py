"""Layers that behave differently in train mode, found by what they hold, in the model of any library."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd


def dropped_patches(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Layers that remove tokens in train mode (open_clip's and timm's PatchDropout), by name."""
    return [
        (name, layer)
        for name, layer in module.named_modules()
        if type(layer).__name__.startswith("PatchDropout") and _rate(layer, "prob") > 0
    ]


def stochastic_layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Layers whose train-mode output depends on random numbers or on the rest of the batch, by name."""
    return [(name, layer) for name, layer in module.named_modules() if _is_stochastic(layer)]


def _is_stochastic(layer: nn.Module) -> bool:
    if isinstance(layer, _BatchNorm):
        return True
    if isinstance(layer, _DropoutNd):
        return layer.p > 0
    # `dropout`: nn.MultiheadAttention and transformers' attention; `drop_prob`: timm's DropPath.
    return _rate(layer, "dropout") > 0 or _rate(layer, "drop_prob") > 0


def _rate(layer: nn.Module, attribute: str) -> float:
    value = getattr(layer, attribute, None)
    return float(value) if isinstance(value, (int, float)) else 0.0
