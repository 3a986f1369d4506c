"""Between the student and the teacher: the projector that trains, and the native bridge over its weights."""

from typing import Any

import torch
from torch import nn

import diva_rs._native as _native
from diva_rs.clip import Tower
from diva_rs.recipes.recipe import Recipe


def make_projector(recipe: Recipe, width: int, condition_width: int | None) -> nn.Module:
    """The trained map from CLIP's embedding (width) to the condition (condition_width), seeded by the recipe.
    Without a condition it is an Identity.

    "linear" is a Linear, as in DIVA; "mlp" is LayerNorm, Linear, GELU, Linear, as in GenHancer (ICCV 2025).

    >>> make_projector(Recipe(projector="linear"), 768, 1024)
    Linear(in_features=768, out_features=1024, bias=True)
    """
    if condition_width is None:
        return nn.Identity()
    # On the CPU in float32, whatever the caller's defaults are: the seed alone decides the start.
    home: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)  # the CPU's alone: fork_rng restores no other here
        if recipe.projector == "linear":
            return nn.Linear(width, condition_width, **home)
        return nn.Sequential(
            nn.LayerNorm(width, **home),
            nn.Linear(width, condition_width, **home),
            nn.GELU(),
            nn.Linear(condition_width, condition_width, **home),
        )


def make_bridge(tower: Tower, projector: nn.Module, recipe: Recipe) -> _native.Bridge:
    """The native map from the tower's tokens to the condition, over the weights of both modules."""
    norm = None if tower.norm is None else (tower.norm.weight, tower.norm.bias, tower.norm.eps)
    proj = None if tower.proj is None else (tower.proj, tower.proj_transposed)
    weights = dict(projector.named_parameters())
    return _native.Bridge(norm, proj, weights, recipe.condition, recipe.window, recipe.text)
