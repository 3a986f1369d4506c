"""Which parts of a step run natively: all that the native networks compute exactly; why the others do not."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from diva_rs.clip import Tower
from diva_rs.diffusion import Teacher
from diva_rs.errors import ConfigError
from diva_rs.native.inspect import NotNative
from diva_rs.native.unchanged import Watch
from diva_rs.native.vision import native_tower
from diva_rs.recipes.recipe import Recipe

_log = logging.getLogger("diva_rs")


class Part(NamedTuple):
    """One network of the step: what the native step is given, and "native" or "torch (reason)"."""

    network: Any
    backend: str
    watch: Watch | None = None  # over the module behind it


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
    build = partial(native_tower, tower, compute, recompute)
    return _choose("the vision tower", recipe, tower.module, fallback, build)


def choose_denoiser(teacher: Teacher, recipe: Recipe) -> Part:
    """The teacher's native network, or `Teacher.denoise` where the recipe or the model asks for it.

    Raises:
        ConfigError: ``backend="native"``, and the model is not one that a native network computes exactly.

    >>> choose_denoiser(teacher, Recipe()).backend
    'native'
    """
    build = partial(teacher.native, recipe.denoiser_checkpointing)
    return _choose("the denoiser", recipe, teacher.unet, teacher.denoise, build)


class Encoder:
    """What makes latents of pixels in [-1, 1]: the native VAE or `Teacher.encode`, decided when first needed.

    A loader that yields latents never needs a VAE, so none has to be there before.

    >>> encoder = Encoder(teacher, Recipe())
    >>> encoder.network() is None, encoder.backend
    (True, 'none (the teacher works on pixels)')
    """

    def __init__(self, teacher: Teacher, recipe: Recipe) -> None:
        self.teacher, self.recipe = teacher, recipe
        self.backend = "not needed yet"
        self._chosen: Part | None = None

    def network(self) -> Any:
        """The native VAE, a callable ``images[, noise] -> latents``, or None where pixels are the latents.

        Raises:
            ConfigError: the VAE that the teacher needs was not found; or ``backend="native"``, and it is not
                one that the native encoder computes exactly; or the VAE was changed since.
            DeviceError: the VAE was moved or cast since the first call.
        """
        if self._chosen is None:
            vae, native = self.teacher.vae, self.teacher.native_encoder
            if vae is None:
                self._chosen = Part(None, "none (the teacher works on pixels)")
            else:
                self._chosen = _choose("the VAE", self.recipe, vae, self._encode, native)
            self.backend = self._chosen.backend
        elif self._chosen.watch is not None:
            self._chosen.watch.check()
        return self._chosen.network

    def _encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.teacher.encode(images, noise=noise)


def _choose(what: str, recipe: Recipe, module: nn.Module, fallback: Any, build: Callable[[], Any]) -> Part:
    if recipe.backend == "torch":
        return Part(fallback, "torch (as the recipe says)", Watch(what, module))
    try:
        network = build()
    except NotNative as reason:
        if recipe.backend == "native":
            raise ConfigError(
                f'backend="native": {what} cannot run natively: {reason}; '
                'backend="auto" runs it through PyTorch'
            ) from reason
        _log.info("%s runs through PyTorch: %s", what, reason)
        return Part(fallback, f"torch ({reason})", Watch(what, module))
    return Part(network, "native", Watch(what, module, build))
