"""Which parts of a step run natively: all that the native networks compute exactly; why the others do not."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from diva_rs.clip import Tower
from diva_rs.diffusion import Teacher
from diva_rs.errors import ConfigError
from diva_rs.native.inspect import NotNative
from diva_rs.native.vision import native_tower
from diva_rs.recipe import Recipe

_log = logging.getLogger("diva_rs")


class Part(NamedTuple):
    """One network of the step: what the native step is given, and "native" or "torch (reason)"."""

    network: Any
    backend: str


def choose_tower(tower: Tower, recipe: Recipe, fallback: Callable[..., Any]) -> Part:
    """The native tower, or ``fallback`` (images -> tokens) where the recipe or the module asks for it.

    Raises:
        ConfigError: ``backend="native"``, and the module is not one that the native tower computes exactly.

    >>> from diva_rs.clip import adapt
    >>> tower = adapt(clip)
    >>> choose_tower(tower, Recipe(backend="torch"), tower.tokens).backend
    'torch (as the recipe says)'
    >>> choose_tower(tower, Recipe(), tower.tokens).backend
    'native'
    """
    compute = "bf16" if recipe.precision == "bf16" else None
    return _choose("the vision tower", recipe, fallback, lambda: native_tower(tower, compute))


def choose_denoiser(teacher: Teacher, recipe: Recipe) -> Part:
    """The teacher's native network, or `Teacher.denoise` where the recipe or the model asks for it.

    Raises:
        ConfigError: ``backend="native"``, and the model is not one that a native network computes exactly.

    >>> choose_denoiser(teacher, Recipe()).backend
    'native'
    """
    return _choose("the denoiser", recipe, teacher.denoise, teacher.native)


def _choose(what: str, recipe: Recipe, fallback: Any, build: Callable[[], Any]) -> Part:
    if recipe.backend == "torch":
        return Part(fallback, "torch (as the recipe says)")
    try:
        return Part(build(), "native")
    except NotNative as reason:
        if recipe.backend == "native":
            raise ConfigError(
                f'backend="native": {what} cannot run natively: {reason}; '
                'backend="auto" runs it through PyTorch'
            ) from reason
        _log.info("%s runs through PyTorch: %s", what, reason)
        return Part(fallback, f"torch ({reason})")
