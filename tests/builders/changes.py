"""How far tensors are apart, random weights, and modules that compute something else."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def error(ours: Tensor, theirs: Tensor) -> float:
    """The norm of the difference over that of ``theirs``."""
    assert ours.shape == theirs.shape
    exact = theirs.detach().double()
    return float((ours.detach().double() - exact).norm() / exact.norm())


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest value of ``theirs``; shape and dtype must be the same."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


def random_weights(module: nn.Module) -> nn.Module:
    """The module with random weights: none is 0 or 1, and none equals that of another block."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1:
                noise /= weight[0].numel() ** 0.5
            elif "norm" in name and name.endswith("weight"):
                noise = 1 + noise / 4
            else:
                noise /= 4
            weight.copy_(noise)
    return module


def setting(path: str, value: Any) -> Callable[[nn.Module], None]:
    """A change that sets the attribute at a dotted path."""
    owner, _, name = path.rpartition(".")
    return lambda module: setattr(module.get_submodule(owner), name, value)


class Adapted(nn.Linear):
    """As a low-rank adapter: computes more than its weight says."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Twice(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight
