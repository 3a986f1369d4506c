"""Which parts of a step run natively: all that the native networks compute exactly; why the others do not."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

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
    recompute = recipe.gradient_checkpointing
    return _choose("the vision tower", recipe, fallback, lambda: native_tower(tower, compute, recompute))


def choose_denoiser(teacher: Teacher, recipe: Recipe) -> Part:
    """The teacher's native network, or `Teacher.denoise` where the recipe or the model asks for it.

    Raises:
        ConfigError: ``backend="native"``, and the model is not one that a native network computes exactly.

    >>> choose_denoiser(teacher, Recipe()).backend
    'native'
    """
    return _choose("the denoiser", recipe, teacher.denoise, teacher.native)


class Encoder:
    """From pixels in [-1, 1] to latents: the native VAE, or `Teacher.encode`, decided when first needed.

    A loader that yields latents never needs a VAE, so none has to be there before.

    >>> encode = Encoder(teacher, Recipe())
    >>> encode(torch.zeros(2, 3, 16, 16), None).shape
    torch.Size([2, 3, 16, 16])
    >>> encode.backend
    'torch (it works on pixels and needs no VAE)'
    """

    def __init__(self, teacher: Teacher, recipe: Recipe) -> None:
        self.teacher, self.recipe = teacher, recipe
        self.backend: str | None = None  # not needed yet
        self._network: Any = None

    def __call__(self, images: Tensor, seeds: Sequence[int] | None) -> Tensor:
        """Latents of ``images`` (B, 3, H, W); with ``seeds`` sampled from the posterior, else its mean."""
        if seeds is not None:  # the noise of a sample is drawn on the host, by the teacher
            return self.teacher.encode(images, seeds)
        if self.backend is None:
            # Pixels are no network: nothing there that could run natively.
            recipe = self.recipe.replace(backend="auto") if self.recipe.backend == "native" else self.recipe
            self._network, self.backend = _choose("the VAE", recipe, None, self.teacher.native_encoder)
        if self._network is None:
            return self.teacher.encode(images)
        latents: Tensor = self._network.encode(images)
        return latents


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
