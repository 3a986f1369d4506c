"""Small DiTs of every kind that has a native network, and inputs for both."""

import copy

import torch
from torch import Tensor, nn

from builders.changes import random_weights
from builders.diffusion import tiny_dit
from diva_rs._native import Network
from diva_rs.diffusion import NativePlan
from diva_rs.diffusion.families.dit import DiT
from diva_rs.diffusion.families.family import Context
from diva_rs.native.dit import DIT

LABELS = ("replace", "join")
VARIANTS = {
    "learned-variance": {},
    "no-variance": {"out_channels": None},
    "three-channels": {"in_channels": 3, "out_channels": 6},
    "no-attention-bias": {"attention_bias": False},
    "affine": {"norm_elementwise_affine": True, "norm_eps": 1e-3},
    "exact-gelu": {"activation_fn": "gelu"},
    "patches-of-4": {"patch_size": 4, "sample_size": 16},
    "patches-of-1": {"patch_size": 1, "sample_size": 3},
    "three-heads": {"num_attention_heads": 3, "attention_head_dim": 12},
    "one-block": {"num_layers": 1},
    "few-classes": {"num_embeds_ada_norm": 2},
    "dropout-at-rest": {"dropout": 0.2},
    "no-effect": {"norm_num_groups": 2, "upcast_attention": True},
}


def build(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    return random_weights(tiny_dit(same_tables=False, **VARIANTS[name])).to(dtype).eval()


def widened(dit: nn.Module) -> nn.Module:
    """The same values in float32."""
    return copy.deepcopy(dit).float()


def inputs(dit: nn.Module, side: int | None = None, length: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    config, dtype = dit.config, next(dit.parameters()).dtype
    side = side or config.sample_size
    noisy = torch.randn(2, config.in_channels, side, side, generator=generator)
    condition = torch.randn(2, length, dit.inner_dim, generator=generator)
    return noisy.to(dtype), torch.tensor([3, 997]), condition.to(dtype)


def theirs(dit: nn.Module, label: str = "replace"):
    family = DiT(dit, Context(lambda width: torch.zeros(1, 1, width), lambda: 8), label)

    def predict(noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        return family.predict(noisy, timesteps, family.slots.fill(condition))[:, : dit.config.in_channels]

    return predict


def native_dit(
    dit: nn.Module, label: str = "replace", checkpoint: bool = False, exact: nn.Module | None = None
) -> Network:
    return DIT.build(dit, NativePlan("dit", {"label": label}), checkpoint, exact)


def through(predict, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
    """The prediction, and the gradient of a fixed random functional of it at the condition."""
    leaf = condition.clone().requires_grad_()
    prediction = predict(noisy, timesteps, leaf)
    weights = torch.randn(prediction.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (prediction * weights.to(prediction)).sum().backward()
    return prediction.detach(), leaf.grad
