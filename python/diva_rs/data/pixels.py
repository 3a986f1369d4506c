"""Pixel conventions, and the conversion of a loader's images to the inputs of CLIP and of the VAE.

Conventions: ``"unit"`` is [0, 1], ``"symmetric"`` is [-1, 1], ``"clip"`` is normalised by CLIP's mean and
std. No function here reads a value on the host.
"""

from torch import Tensor

import diva_rs._native as _native
from diva_rs.recipes.recipe import Recipe

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)  # openai/CLIP, clip.py `_transform`
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
# torchvision's; the official DIVA code un-normalises the VAE's input with them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CONVENTIONS = ("unit", "clip", "symmetric")

Three = tuple[float, ...]  # one number per channel


def to_unit(images: Tensor, convention: str, mean: Three = OPENAI_MEAN, std: Three = OPENAI_STD) -> Tensor:
    """Convert images (B, 3, H, W) from the declared convention to [0, 1].

    >>> to_unit(torch.tensor([-1.0, 0.0, 1.0]), "symmetric").tolist()
    [0.0, 0.5, 1.0]
    """
    return _native.Pixels(convention, "symmetric", "bicubic", True, mean, std).to_unit(images)


def clip_input(
    images: Tensor,
    recipe: Recipe,
    size: tuple[int, int],
    mean: Three = OPENAI_MEAN,
    std: Three = OPENAI_STD,
) -> Tensor:
    """CLIP's input ``(B, 3, *size)``, normalised by ``mean`` and ``std``; device and dtype stay.

    ``images`` is (B, 3, H, W) in the convention ``recipe.pixels``; those of the right size are not resampled.
    Nothing is clamped, so bicubic resampling may overshoot slightly at hard edges.

    >>> recipe = Recipe(pixels="unit", resize="bicubic", antialias=True)
    >>> half = (0.5, 0.5, 0.5)
    >>> clip_input(torch.zeros(2, 3, 64, 48), recipe, (32, 32), mean=half, std=half).unique()
    tensor([-1.])
    """
    return native_pixels(recipe, mean, std, vae_pixels="symmetric").clip_input(images, size)


def vae_input(
    images: Tensor,
    recipe: Recipe,
    size: tuple[int, int],
    mean: Three = OPENAI_MEAN,
    std: Three = OPENAI_STD,
    convention: str | None = None,
) -> Tensor:
    """The VAE's input ``(B, 3, *size)``; device and dtype stay.

    ``recipe.vae_pixels="symmetric"`` gives unit pixels x 2 - 1, the range [-1, 1] that every Stable Diffusion
    VAE was trained on. ``"official"`` gives ``(x * std + mean) * 2 - 1`` with ImageNet's mean and std, where
    x was normalised by ``mean`` and ``std``: the input of the official DIVA code, with 0.82 to 0.86 of the
    contrast. ``convention`` replaces ``recipe.pixels``: use ``"clip"`` for ``pixel_values``.

    >>> recipe = Recipe(pixels="unit", vae_pixels="symmetric")
    >>> vae_input(torch.ones(1, 3, 8, 8), recipe, (8, 8)).unique()
    tensor([1.])
    """
    return native_pixels(recipe, mean, std, convention).vae_input(images, size)


def native_pixels(
    recipe: Recipe,
    mean: Three,
    std: Three,
    convention: str | None = None,
    vae_pixels: str | None = None,
) -> _native.Pixels:
    """The recipe's pixel fields for the native core; ``convention`` and ``vae_pixels`` replace its own."""
    conventions = convention or recipe.pixels, vae_pixels or recipe.vae_pixels
    return _native.Pixels(*conventions, recipe.resize, recipe.antialias, mean, std)
