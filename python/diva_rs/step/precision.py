"""Which arithmetic multiplies the bf16 matrices of a step: on a CPU the faster one, by a measurement."""

import logging
import math
import time
import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from diva_rs.diffusion.frozen import no_autocast
from diva_rs.recipes.recipe import Recipe

_log = logging.getLogger("diva_rs")
_ROWS, _SIDE, _ROUNDS = 256, 1024, 5
_MARGIN = 1.03  # times faster than bf16's own products: what float32 must be


def products_of(recipe: Recipe, device: torch.device) -> str | None:
    """What multiplies bf16 matrices on ``device``: "bf16", "fp32", or None where there is no choice.

    Warns where ``precision="fp32"`` would be faster.

    >>> products_of(Recipe(precision="bf16", products="fp32"), torch.device("cpu"))
    'fp32'
    >>> products_of(Recipe(precision="bf16"), torch.device("cuda")) is None
    True
    """
    if recipe.precision != "bf16":
        return None
    if device.type != "cpu":
        if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            _warn("this cuda device has no bfloat16 arithmetic and emulates it, more slowly")
        return None
    if recipe.products != "auto":
        return recipe.products
    speeds = measured()
    chosen = "fp32" if speeds["fp32"] > _MARGIN * speeds["bf16"] else "bf16"
    found = ", ".join(f"{speed / 1e9:,.0f} GFLOP/s in {name}" for name, speed in speeds.items())
    _log.info('precision="bf16": this CPU multiplies bfloat16 matrices in %s (%s)', chosen, found)
    if chosen == "fp32":
        _warn(f"this cpu multiplies float32 faster than bfloat16 ({found}), so its products are float32")
    return chosen


@cache
def measured() -> dict[str, float]:
    """FLOP/s of a product of bf16 matrices on this CPU, by its own instructions and as float32, with casts.

    >>> sorted(measured())
    ['bf16', 'fp32']
    """
    a, b = (torch.ones(rows, _SIDE, dtype=torch.bfloat16, device="cpu") for rows in (_ROWS, _SIDE))
    ways: dict[str, Callable[[], Tensor]] = {
        "bf16": lambda: a @ b,
        "fp32": lambda: (a.float() @ b.float()).bfloat16(),
    }
    best = dict.fromkeys(ways, math.inf)
    with torch.no_grad(), no_autocast(a.device):
        for _ in range(_ROUNDS):
            for name, product in ways.items():
                start = time.perf_counter()
                product()
                best[name] = min(best[name], time.perf_counter() - start)
    return {name: 2 * _ROWS * _SIDE**2 / seconds for name, seconds in best.items()}


def _warn(what: str) -> None:
    text = f'precision="bf16": {what}. "fp32" is faster, and its diffusion model takes twice the memory'
    warnings.warn(text, UserWarning, stacklevel=5)
