"""From any supported model to a Source."""

from typing import Any

from torch import Tensor, nn

from diva_rs.clip import unwrap
from diva_rs.clip.export import from_modules, from_transformers
from diva_rs.clip.export.source import Source
from diva_rs.clip.libraries.transformers import family_of
from diva_rs.clip.wrappers import own_weights
from diva_rs.errors import ConfigError, WeightsError


def plain(clip: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model inside its wrappers, and its weights.

    Raises:
        ConfigError: it is no model.
        WeightsError: a weight holds no values; names it.
    """
    if isinstance(clip, (tuple, list)):
        raise ConfigError(
            f"clip is a {type(clip).__name__} of {len(clip)}, expected the model alone: "
            "open_clip.create_model_and_transforms and clip.load return the model first"
        )
    if not isinstance(clip, nn.Module):
        raise ConfigError(f"clip is a {type(clip).__name__}, expected a model (a run's is result.clip)")
    state = own_weights(clip)
    for key, value in state.items():
        if value.is_meta:
            raise WeightsError(f"{key} is on the meta device and holds no values: load the weights first")
    return unwrap(clip), state


def is_open_clip(model: nn.Module) -> bool:
    """Whether it is a full model of open_clip."""
    return any(cls.__module__.startswith("open_clip.") for cls in type(model).__mro__)


def read(model: nn.Module, state: dict[str, Tensor], vision_only: bool = False) -> Source:
    """What the model computes, and its weights by open_clip's keys.

    Raises:
        ConfigError, WeightsError: something that other layouts cannot express; names it.
    """
    if family_of(model) is not None:
        return from_transformers.read(model, state)
    return from_modules.read(model, state, vision_only)
