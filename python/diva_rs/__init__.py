"""diva-rs: generative feedback that makes CLIP see better (DIVA, arXiv 2407.20171).

The main job is one call::

    result = diva_rs.post_train(clip, unet, loader)
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from diva_rs._base.torch_version import check, mismatch

try:
    import diva_rs._native as _native  # after torch, whose libraries it needs
except ImportError as err:  # another torch lacks functions that it calls
    raise (mismatch() or err) from err
check(_native.__torch__)
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
    from diva_rs.evaluation.interpolation import InterpolationSweep, interpolate, interpolation_sweep
    from diva_rs.recipes.recipe import Recipe
    from diva_rs.recipes.stage import Stage
    from diva_rs.run.judging import judge_images
    from diva_rs.run.post_training import post_train
    from diva_rs.run.result import PostTrainResult
    from diva_rs.step.draws import DrawPlan, Draws, draw
    from diva_rs.step.feedback import FeedbackLoss
    from diva_rs.step.trainer import Trainer

__version__: str = _native.__version__

# Public names and their modules, imported on first use: `import diva_rs` costs little over torch.
_NAMES = {
    "DrawPlan": "step.draws",
    "Draws": "step.draws",
    "FeedbackLoss": "step.feedback",
    "InterpolationSweep": "evaluation.interpolation",
    "PostTrainResult": "run.result",
    "Recipe": "recipes.recipe",
    "Stage": "recipes.stage",
    "Teacher": "diffusion",
    "Trainer": "step.trainer",
    "draw": "step.draws",
    "interpolate": "evaluation.interpolation",
    "interpolation_sweep": "evaluation.interpolation",
    "judge_images": "run.judging",
    "post_train": "run.post_training",
}
# Public modules, and where each one lies.
_MODULES = {
    "callbacks": "run.callbacks",
    "captions": "captions",
    "checkpoint": "_base.checkpoint",
    "clip": "clip",
    "data": "data",
    "diffusion": "diffusion",
    "distributed": "distributed",
    "draws": "step.draws",
    "errors": "errors",
    "evaluation": "evaluation",
    "export": "clip.export",
    "microworld": "microworld",
    "recipe": "recipes.recipe",
    "report": "report",
}
# Other paths that stay importable.
_MOVED = {"demo": "microworld.demo", "evaluation.report": "report"}

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
    "Stage",
    "Teacher",
    "Trainer",
    "WeightsError",
    "draw",
    "interpolate",
    "interpolation_sweep",
    "judge_images",
    "post_train",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"diva_rs.{_NAMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"diva_rs.{_MODULES[name]}")
    raise AttributeError(f"module 'diva_rs' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES, "__version__"})


class _PublicPaths(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets ``import diva_rs.callbacks`` find ``diva_rs.run.callbacks``: one module under both names."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        package, _, rest = name.partition(".")
        if package == __name__:
            for public, private in {**_MODULES, **_MOVED}.items():
                if public != private and f"{rest}.".startswith(f"{public}."):
                    place = f"{package}.{private}{rest.removeprefix(public)}"
                    return importlib.machinery.ModuleSpec(name, self, loader_state=place, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        found = importlib.import_module(spec.loader_state)
        self._spec = found.__spec__
        return found

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has written the public name into it


sys.meta_path.append(_PublicPaths())
