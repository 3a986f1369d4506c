"""Short runs of `post_train` on the small models."""

from typing import Any

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
