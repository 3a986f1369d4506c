"""Pixels: from what the loader gives to what CLIP and the VAE take.

Three conventions, declared by the caller and never guessed: ``"unit"`` is [0, 1], ``"symmetric"`` is [-1, 1],
``"clip"`` is normalised by CLIP's mean and std. Nothing here reads a value on the host, so all of it runs on
CUDA without a synchronisation and on the meta device. The arithmetic is in ``src/pixels.rs``: a training step
does the same without coming here.
"""

from typing import Any, Protocol

from torch import Tensor

import diva_rs._native as _native
from diva_rs._base.arguments import checked, takes
from diva_rs._base.kinds import CHANNELS, dense
from diva_rs._base.settings import flag, integer, several, string
from diva_rs.data.checks import PixelGuard, check_images
from diva_rs.data.conventions import OPENAI_MEAN, OPENAI_STD, checked_convention

__all__ = ["PixelFields", "PixelGuard", "check_images", "clip_input", "to_unit", "vae_input"]


class PixelFields(Protocol):
    """The pixel fields of a `Recipe`, which is all that these functions read of it."""

    @property
    def pixels(self) -> str: ...
    @property
    def vae_pixels(self) -> str: ...
    @property
    def resize(self) -> str: ...
    @property
    def antialias(self) -> bool: ...


_IMAGES, _SIZE = dense(), several(integer(1), 2)
_FIELDS = {"pixels": string(), "vae_pixels": string(), "resize": string(), "antialias": flag()}


@takes(images=_IMAGES, mean=CHANNELS, std=CHANNELS)
def to_unit(
    images: Tensor,
    convention: str,
    mean: tuple[float, ...] = OPENAI_MEAN,
    std: tuple[float, ...] = OPENAI_STD,
) -> Tensor:
    """Pixels in [0, 1] from pixels in the declared convention.

    ``images`` is (B, 3, H, W), floating; the result has its shape, device and dtype. ``mean`` and ``std`` are
    read for ``"clip"`` only. Raises ConfigError for an unknown convention.

    >>> to_unit(torch.tensor([-1.0, 0.0, 1.0]), "symmetric").tolist()
    [0.0, 0.5, 1.0]
    """
    checked_convention(convention)
    return _native.Pixels(convention, "symmetric", "bicubic", True, mean, std).to_unit(images)


@takes(images=_IMAGES, size=_SIZE)
def clip_input(
    images: Tensor,
    recipe: PixelFields,
    size: tuple[int, int],
    mean: tuple[float, ...] = OPENAI_MEAN,
    std: tuple[float, ...] = OPENAI_STD,
) -> Tensor:
    """CLIP's input (B, 3, *size), normalised by ``mean`` and ``std``, on the images' device and in their
    dtype.

    ``images`` is (B, 3, H, W) in the convention ``recipe.pixels``; ``recipe.resize`` and ``recipe.antialias``
    say how it is resampled (``torch.nn.functional.interpolate``); images that already have ``size`` are not.
    Bilinear without antialias is the official code's path, which normalises first and resizes then; the two
    commute up to rounding. Bicubic may overshoot [0, 1] a little at hard edges: nothing is clamped.

    >>> from types import SimpleNamespace
    >>> recipe = SimpleNamespace(pixels="unit", resize="bicubic", antialias=True)
    >>> half = (0.5, 0.5, 0.5)
    >>> clip_input(torch.zeros(2, 3, 64, 48), recipe, (32, 32), mean=half, std=half).unique()
    tensor([-1.])
    """
    return native_pixels(recipe, mean, std, vae_pixels="symmetric").clip_input(images, size)


@takes(images=_IMAGES, size=_SIZE)
def vae_input(
    images: Tensor,
    recipe: PixelFields,
    size: tuple[int, int],
    mean: tuple[float, ...] = OPENAI_MEAN,
    std: tuple[float, ...] = OPENAI_STD,
    convention: str | None = None,
) -> Tensor:
    """The VAE's input (B, 3, *size), on the images' device and in their dtype.

    ``recipe.vae_pixels="symmetric"``: unit pixels x 2 - 1, in [-1, 1], what every Stable Diffusion VAE was
    trained on. ``"official"``: ``(x * std + mean) * 2 - 1`` with ImageNet's mean and std, where x was
    normalised by ``mean`` and ``std``: the official DIVA code's input. With OpenAI's this leaves 0.82 to
    0.86 of the contrast.

    ``convention`` replaces ``recipe.pixels``: pixels that came ready for CLIP (``pixel_values`` alone) are
    un-normalised with ``"clip"``. Raises ConfigError for an unknown convention.

    >>> from types import SimpleNamespace
    >>> recipe = SimpleNamespace(pixels="unit", vae_pixels="symmetric", resize="bicubic", antialias=True)
    >>> vae_input(torch.ones(1, 3, 8, 8), recipe, (8, 8)).unique()
    tensor([1.])
    """
    return native_pixels(recipe, mean, std, convention).vae_input(images, size)


def native_pixels(
    recipe: PixelFields,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    convention: str | None = None,
    vae_pixels: str | None = None,
) -> _native.Pixels:
    """The pixel fields of a recipe as the native core takes them; what is given replaces the recipe's.

    >>> native_pixels(Recipe(pixels="symmetric"), OPENAI_MEAN, OPENAI_STD).to_unit(torch.ones(1))
    tensor([1.])
    """
    given = {"pixels": convention, "vae_pixels": vae_pixels}
    fields: dict[str, Any] = {
        name: checked(name, getattr(recipe, name, None) if given.get(name) is None else given[name], kind)
        for name, kind in _FIELDS.items()
    }
    fields |= {"mean": checked("mean", mean, CHANNELS), "std": checked("std", std, CHANNELS)}
    return _native.Pixels(**fields)
