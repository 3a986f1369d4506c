"""Between the student and the teacher: the projector that trains, and the native bridge over its weights."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import diva_rs._native as _native
from diva_rs.clip import Tower
from diva_rs.diffusion import Slots
from diva_rs.errors import ConfigError
from diva_rs.recipes.presets import check_slots
from diva_rs.recipes.recipe import Recipe


class SlotProjectors(nn.ModuleDict):
    """One projector for each slot, over the same input; their outputs (..., C) stand side by side."""

    def forward(self, embedding: Tensor) -> Tensor:
        return torch.cat([projector(embedding) for projector in self.values()], dim=-1)


def make_projector(recipe: Recipe, width: int, slots: Slots | None) -> nn.Module:
    """The trained map from CLIP's embedding (width) to the condition in ``slots``, seeded by the recipe: one
    for a condition that all slots share, one for each of two slots of different widths, and an Identity
    without a condition.

    "linear" is a Linear, as in DIVA; "mlp" is LayerNorm, Linear, GELU, Linear, as in GenHancer (ICCV 2025);
    "identity", as in un2CLIP (NeurIPS 2025), has no parameters. The outputs of ``recipe.class_tokens`` tokens
    follow one another. With ``recipe.projector_start="zero"`` the last Linear starts at zero, as the zero
    convolutions of ControlNet (arXiv 2302.05543): CLIP adds nothing to the condition at first.

    Raises:
        ConfigError: "identity" with widths that differ, a preset for teachers with other slots, or several
            tokens of the class token for a slot that holds one vector.
    """
    if slots is None:
        return nn.Identity()
    check_slots(recipe.name, slots.names)
    tokens = recipe.class_tokens
    if tokens > 1 and (slots.tokens is None or slots.split is not None):
        raise ConfigError(
            f"class_tokens={tokens}: this teacher takes its condition through {' and '.join(slots.names)}, "
            "and a pooled slot holds a single vector: use class_tokens=1, or Teacher(..., slot='tokens') "
            "where the model has such a slot"
        )
    if recipe.projector == "identity":
        if slots.width * tokens != width:
            raise ConfigError(
                f"projector='identity': CLIP's embedding is {width} wide, the teacher's condition "
                f"{slots.width * tokens}: take a teacher for embeddings of this width, or another projector"
            )
        return nn.Identity()
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)  # the CPU's alone: fork_rng restores no other here
        made = {name: _projector(recipe.projector, width, out * tokens) for name, out in slots.parts.items()}
        if recipe.projector_start == "zero":
            for projector in made.values():
                last = projector[-1] if isinstance(projector, nn.Sequential) else projector
                for parameter in last.parameters():
                    nn.init.zeros_(parameter)
    return made[""] if "" in made else SlotProjectors(made)


def _projector(kind: str, width: int, out: int) -> nn.Module:
    # On the CPU in float32, also under the caller's other defaults: the seed alone decides the start.
    home: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}
    if kind == "linear":
        return nn.Linear(width, out, **home)
    return nn.Sequential(
        nn.LayerNorm(width, **home), nn.Linear(width, out, **home), nn.GELU(), nn.Linear(out, out, **home)
    )


def make_bridge(tower: Tower, projector: nn.Module, recipe: Recipe) -> _native.Bridge:
    """The native map from the tower's tokens to the condition, over the weights of both modules."""
    norm = None if tower.norm is None else (tower.norm.weight, tower.norm.bias, tower.norm.eps)
    proj = None if tower.proj is None else (tower.proj, tower.proj_transposed)
    weights = dict(projector.named_parameters())
    kernel = fused_recap(tower, projector, recipe)
    number = recipe.class_tokens if recipe.condition == "class" else recipe.window
    return _native.Bridge(norm, proj, weights, recipe.condition, number, recipe.text, kernel)


def fused_recap(tower: Tower, projector: nn.Module, recipe: Recipe) -> Callable[..., Tensor] | None:
    """The Triton kernel for this bridge, where ``DIVA_RS_FUSED_RECAP=1`` is set and the weights are on CUDA.

    Otherwise the core's own operations run, also for windows, several tokens of the class token,
    broadcast text, an mlp, two slots and float64.
    It is to be switched on until somebody has compared it on a card: `benches/gpu.sh` does.
    """
    if os.environ.get("DIVA_RS_FUSED_RECAP") != "1":
        return None
    named: dict[str, Tensor | None] = {"proj": tower.proj, **projector.state_dict(prefix="projector.")}
    if tower.norm is not None:
        named = {"norm.weight": tower.norm.weight, "norm.bias": tower.norm.bias, **named}
    params = {name: part for name, part in named.items() if part is not None}
    linear = isinstance(projector, (nn.Linear, nn.Identity)) and {"proj", "projector.weight"} & params.keys()
    ready = all(part.is_cuda and part.dtype != torch.float64 for part in params.values())
    patches = {"class": 0, "random": 0, "all": tower.patches}.get(recipe.condition)
    if not linear or not ready or patches is None or find_spec("triton") is None:
        return None
    from diva_rs.native.recap import JOINS, FusedRecap  # needs Triton

    if recipe.text not in JOINS or recipe.class_tokens > 1:
        return None
    eps = None if tower.norm is None else tower.norm.eps
    chosen = recipe.condition == "random"
    return FusedRecap(tuple(params), eps, tower.proj_transposed, chosen, patches, recipe.text)
