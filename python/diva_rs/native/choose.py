"""Which networks of a step run natively: all that the core computes exactly; why the others do not."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import diva_rs._native as _native
from diva_rs.clip import Tower
from diva_rs.diffusion import Condition, Teacher
from diva_rs.diffusion.frozen import freeze, home
from diva_rs.errors import ConfigError
from diva_rs.native.dit import DIT
from diva_rs.native.inspect import NotNative
from diva_rs.native.mmdit import MMDIT
from diva_rs.native.unchanged import ModuleSnapshot
from diva_rs.native.unet import UNET
from diva_rs.native.vae import native_vae
from diva_rs.native.vision import native_tower
from diva_rs.recipes.recipe import Recipe

_log = logging.getLogger("diva_rs")

DENOISERS = {denoiser.kind: denoiser for denoiser in (UNET, DIT, MMDIT)}


class Part(NamedTuple):
    """One network of the step: what the native step is given, and "native" or "torch (reason)"."""

    network: Any
    backend: str
    snapshot: ModuleSnapshot | None = None  # of the module behind it


class TorchDenoiser:
    """A teacher's own module as the denoiser of a native step, which calls it with a tensor per slot."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        self.slots, self.split = teacher.slots.names, teacher.slots.split

    @property
    def trained(self) -> dict[str, Tensor]:
        """The parameters that train, by name."""
        named = self.teacher.denoiser.named_parameters(prefix="denoiser")
        return dict(named) if self.teacher.trainable else {}

    def __call__(self, noisy: Tensor, timesteps: Tensor, *slots: Tensor) -> Tensor:
        condition = Condition(**dict(zip(self.slots, slots, strict=True)))
        return self.teacher.denoise(noisy, timesteps, condition)


def choose_tower(tower: Tower, recipe: Recipe, fallback: Callable[..., Any]) -> Part:
    """The native tower, or ``fallback`` (images -> tokens) where the recipe or the module needs it.

    >>> clip, teacher, images = diva_rs.microworld.example()
    >>> from diva_rs.clip import adapt
    >>> tower = adapt(clip)
    >>> choose_tower(tower, Recipe(backend="torch"), tower.tokens).backend
    'torch (as the recipe says)'
    >>> choose_tower(tower, Recipe(), tower.tokens).backend
    'native'
    """
    compute = "bf16" if recipe.precision == "bf16" else None
    build = partial(native_tower, tower, compute, recipe.gradient_checkpointing)
    return _choose("the vision tower", recipe, tower.module, fallback, build)


def choose_denoiser(teacher: Teacher, recipe: Recipe) -> Part:
    """The teacher's native network, or its own module where the recipe or the model needs it.

    >>> clip, teacher, images = diva_rs.microworld.example()
    >>> choose_denoiser(teacher, Recipe()).backend
    'native'
    """
    build = partial(native_denoiser, teacher, recipe.denoiser_checkpointing)
    return _choose("the denoiser", recipe, teacher.denoiser, TorchDenoiser(teacher), build)


def native_denoiser(teacher: Teacher, checkpoint: bool = False) -> _native.Network:
    """The native network that predicts what `Teacher.denoise` does, on the same weights; or NotNative.

    With ``checkpoint`` a step computes each of its blocks again in the backward pass instead of keeping its
    activations.

    >>> clip, teacher, images = diva_rs.microworld.example()
    >>> native_denoiser(teacher).kind
    'unet_2d_condition'
    """
    plan = teacher.family.native()
    if isinstance(plan, str):
        raise NotNative(plan)
    if plan.kind not in DENOISERS:
        raise NotNative(f"there is no native network of the kind {plan.kind!r}")
    build = partial(DENOISERS[plan.kind].build, teacher.denoiser, plan, checkpoint)
    if teacher.trainable:
        return build(train=teacher.products)
    freeze(teacher.denoiser)
    device, dtype = home(teacher.given, "the denoiser")
    rounded = teacher.dtype == torch.bfloat16 and dtype == torch.float32 and device == teacher.device
    return build(exact=teacher.given if rounded else None)


def native_encoder(teacher: Teacher) -> _native.Network:
    """The native encoder that gives what `Teacher.encode` does, on the VAE's weights; or NotNative."""
    if teacher.vae is None:
        raise NotNative("it works on pixels and needs no VAE")
    return native_vae(teacher.vae)


class Encoder:
    """What makes latents of pixels in [-1, 1]: the native VAE or `Teacher.encode`, chosen when first needed.

    >>> clip, teacher, images = diva_rs.microworld.example()
    >>> encoder = Encoder(teacher, Recipe())
    >>> encoder.network() is None, encoder.backend
    (False, 'native')
    """

    def __init__(self, teacher: Teacher, recipe: Recipe) -> None:
        self.teacher, self.recipe = teacher, recipe
        self.backend = "not needed yet"
        self._chosen: Part | None = None

    def network(self) -> Any:
        """The native VAE, a callable ``images[, noise] -> latents``, or None where pixels are the latents.

        Raises an error where the VAE was changed, moved or cast since the first call.
        """
        if self._chosen is None:
            self._chosen = self._choice()
            self.backend = self._chosen.backend
        elif self._chosen.snapshot is not None:
            self._chosen.snapshot.check()
        return self._chosen.network

    def _choice(self) -> Part:
        def encode(images: Tensor, noise: Tensor | None = None) -> Tensor:
            return self.teacher.encode(images, noise=noise)

        if self.teacher.vae is None:
            return Part(None, "none (the teacher works on pixels)")
        build = partial(native_encoder, self.teacher)
        return _choose("the VAE", self.recipe, self.teacher.vae, encode, build)


def _choose(what: str, recipe: Recipe, module: nn.Module, fallback: Any, build: Callable[[], Any]) -> Part:
    if recipe.backend == "torch":
        return Part(fallback, "torch (as the recipe says)", ModuleSnapshot(what, module))
    try:
        network = build()
    except NotNative as reason:
        if recipe.backend == "native":
            raise ConfigError(
                f'backend="native": {what} cannot run natively: {reason}; '
                'backend="auto" runs it through PyTorch'
            ) from reason
        _log.info("%s runs through PyTorch: %s", what, reason)
        return Part(fallback, f"torch ({reason})", ModuleSnapshot(what, module))
    return Part(network, "native", ModuleSnapshot(what, module, build))
