"""diva-rs: generative feedback that makes CLIP see better (DIVA, arXiv 2407.20171).

The main job is one call::

    result = diva_rs.post_train(clip, unet, loader)
"""

import importlib
from typing import TYPE_CHECKING, Any

import torch

_TORCH = "2.13.0"  # the libtorch that the native module was built against
if torch.__version__.split("+")[0] != _TORCH:
    raise ImportError(
        f"diva_rs was built against torch {_TORCH}, but torch {torch.__version__} is installed: "
        f"pip install torch=={_TORCH}"
    )

from diva_rs import _native  # noqa: E402  (torch's libraries must be loaded first)
from diva_rs.errors import (  # noqa: E402
    ConfigError,
    DataError,
    DependencyError,
    DeviceError,
    DivaError,
    RankError,
    ShapeError,
    WeightsError,
)

if TYPE_CHECKING:
    from diva_rs.diffusion import Teacher
    from diva_rs.draws import DrawPlan, Draws, draw
    from diva_rs.feedback import FeedbackLoss
    from diva_rs.interpolation import interpolate
    from diva_rs.post_training import post_train
    from diva_rs.recipe import Recipe
    from diva_rs.result import PostTrainResult
    from diva_rs.sweep import InterpolationSweep, interpolation_sweep
    from diva_rs.trainer import Trainer

__version__: str = _native.__version__

# Public names and the rooms they live in, imported at first use: `import diva_rs` costs little over torch.
_ROOMS = {
    "DrawPlan": "draws",
    "Draws": "draws",
    "FeedbackLoss": "feedback",
    "InterpolationSweep": "sweep",
    "PostTrainResult": "result",
    "Recipe": "recipe",
    "Teacher": "diffusion",
    "Trainer": "trainer",
    "draw": "draws",
    "interpolate": "interpolation",
    "interpolation_sweep": "sweep",
    "post_train": "post_training",
}
_SUBMODULES = (
    "callbacks",
    "checkpoint",
    "clip",
    "data",
    "diffusion",
    "distributed",
    "draws",
    "errors",
    "evaluation",
    "export",
    "microworld",
    "recipe",
)

__all__ = [
    "ConfigError",
    "DataError",
    "DependencyError",
    "DeviceError",
    "DivaError",
    "DrawPlan",
    "Draws",
    "FeedbackLoss",
    "InterpolationSweep",
    "PostTrainResult",
    "RankError",
    "Recipe",
    "ShapeError",
    "Teacher",
    "Trainer",
    "WeightsError",
    "draw",
    "interpolate",
    "interpolation_sweep",
    "post_train",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(importlib.import_module(f"diva_rs.{_ROOMS[name]}"), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"diva_rs.{name}")
    raise AttributeError(f"module 'diva_rs' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_SUBMODULES, "__version__"})
