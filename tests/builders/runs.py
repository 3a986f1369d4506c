"""Short runs of `post_train` on the small models."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import diva_rs
from builders.small import small_clip


def train(teacher: Any, loader: Any, recipe: Any = None, clip: Any = None, **given: Any) -> Any:
    """A run of a small CLIP, or of ``clip``, that logs every step."""
    clip = small_clip() if clip is None else clip
    return diva_rs.post_train(clip, teacher, loader, recipe, **{"progress": False, "log_every": 1, **given})


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's state."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: Any, other: Any) -> bool:
    """Whether two results hold the same CLIP and the same projector, bit by bit."""
    first, second = ({**r.clip.state_dict(), **r.projector.state_dict()} for r in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Stop(Exception):
    """Ends a run, as a crash would."""


def stop_at(step: int) -> Callable[[int, Any], None]:
    """A callback that raises `Stop` after this step."""

    def stop(at: int, metrics: Any) -> None:
        if at == step:
            raise Stop

    return stop
