"""Between the weights before and after: the ensemble in weight space of WiSE-FT.

Wortsman et al., "Robust fine-tuning of zero-shot models", arXiv 2109.01903: a straight line from the original
to the fine-tuned weights often keeps most of what was learnt and most of what would have been lost.
"""

import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs._base.arguments import takes
from diva_rs._base.kinds import model
from diva_rs._base.settings import optional
from diva_rs.clip.weights import check_alike, fill, weights_of
from diva_rs.errors import ConfigError, WeightsError, shown

Weights = nn.Module | Mapping[str, Tensor] | str | os.PathLike[str]


@takes(into=optional(model()))
def interpolate(
    before: Weights, after: Weights, alpha: float, *, into: nn.Module | None = None
) -> dict[str, Tensor]:
    """The weights ``(1 - alpha) * before + alpha * after``.

    Args:
        before, after: models, state dicts, or files (``.safetensors``, ``.pt``; a run's folder stands for its
            ``clip.safetensors``), of the same keys and shapes. ``before`` must have been kept: training
            changes a model in place.
        alpha: from 0 (the bits of ``before``) to 1 (the bits of ``after``). Beyond is refused: nothing is
            extrapolated.
        into: a model that takes the weights, in place; it may be one of the two.

    Returns:
        New tensors, name -> tensor, in the dtypes and on the devices of ``after``; half precision is computed
        in float32. Counters and masks must be the same in both, and are.

    Raises:
        ConfigError: ``alpha`` is no number from 0 to 1, or a source is no weights.
        WeightsError: keys or shapes differ, a counter differs, a file cannot be read; names it. ``into`` is
            unchanged then.

    >>> interpolate({"w": torch.zeros(2)}, {"w": torch.ones(2)}, 0.25)
    {'w': tensor([0.2500, 0.2500])}
    >>> original = {name: value.clone() for name, value in clip.state_dict().items()}
    >>> weights = interpolate(original, clip, 0.5, into=clip)
    """
    alpha = checked_alpha(alpha)
    old, new = weights_of(before, "before"), weights_of(after, "after")
    check_alike(old, new, ("before", "after"))
    mixed = {key: _between(key, old[key], value, alpha) for key, value in new.items()}
    if into is not None:
        fill(into, mixed, "the interpolation")
    return mixed


def checked_alpha(alpha: Any) -> float:
    """``alpha`` as a number from 0 to 1.

    Raises:
        ConfigError: it is none.

    >>> checked_alpha(50)
    Traceback (most recent call last):
    diva_rs.errors.ConfigError: alpha=50: a number from 0 (before) to 1 (after) is needed
    """
    try:
        value = math.nan if isinstance(alpha, bool) else float(alpha)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        value = math.nan
    if not 0 <= value <= 1:
        raise ConfigError(f"alpha={shown(alpha)}: a number from 0 (before) to 1 (after) is needed")
    return value


def _between(key: str, old: Tensor, new: Tensor, alpha: float) -> Tensor:
    old, new = old.detach().to(new.device), new.detach()
    if not new.is_floating_point():
        if old.is_floating_point() or not torch.equal(old, new.to(old.dtype)):
            raise WeightsError(f"{key} is {new.dtype} and differs between before and after: no weight to mix")
        return new.clone()
    wide = torch.promote_types(torch.promote_types(old.dtype, new.dtype), torch.float32)
    # lerp gives the bits of its first argument at 0, and of its second at 1.
    return torch.lerp(old.to(wide), new.to(wide), alpha).to(new.dtype)
