"""The image side of a CLIP: from a picture to the pixels that the model was trained on."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diva_rs._base.optional import require
from diva_rs.data.augment import image_pixels
from diva_rs.errors import ConfigError, a_type
from diva_rs.evaluation.text_side import of_transformers

OWN = "give the model's own transform"
_MOST = 20.0  # normalised pixels are below 5


def image_transform(preprocess: Any) -> Callable[[Any], Tensor]:
    """PIL image -> (3, H, W); raises ConfigError for a transform that draws: no two runs would agree."""
    image = getattr(preprocess, "image_processor", preprocess)
    if not callable(image) or hasattr(image, "convert_ids_to_tokens"):
        raise ConfigError(
            f"preprocess is {a_type(image)}: give the model's own transform for validation, or a processor "
            "of transformers"
        )
    random = [name for name in _names(preprocess) if name.startswith("Random")]
    if random:
        raise ConfigError(
            f"preprocess draws random numbers ({random[0]}): it is the transform for training; the one for "
            "scoring is the third value of open_clip.create_model_and_transforms"
        )

    def transform(picture: Any) -> Tensor:
        with torch.device("cpu"):  # also under another default device
            if of_transformers(preprocess):
                pixels = _processed(image, picture.convert("RGB"))
            else:
                pixels = preprocess(picture)
        # Integers would be cast later on and scored as if they were normalised.
        pixels = image_pixels(pixels, "preprocess", OWN)
        if (most := float(pixels.abs().max())) > _MOST:
            raise ConfigError(f"preprocess gives pixels up to {most:g}, not normalised: {OWN}")
        return pixels

    return transform


def _processed(processor: Any, picture: Any) -> Tensor:
    """(3, H, W) of a processor of transformers, whose centre crop is made as torchvision makes it: where the
    margin is odd, that of transformers may lie one pixel beside the crop that CLIPs are trained on.
    """
    size = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None

    def pixels(**settings: Any) -> Tensor:
        found: Tensor = processor(images=picture, return_tensors="pt", **settings)["pixel_values"][0]
        return found

    if not size:
        return pixels()
    whole, height, width = pixels(do_center_crop=False), size["height"], size["width"]
    if whole.shape[-2] < height or whole.shape[-1] < width:  # transformers pads
        return pixels()
    top, left = round((whole.shape[-2] - height) / 2), round((whole.shape[-1] - width) / 2)
    return whole[..., top : top + height, left : left + width]


def check_scale(transform: Callable[[Any], Tensor], clip: Any) -> None:
    """Warn if a white image does not come out as the model's own mean and deviation make it.

    open_clip's models hold them; those of other libraries do not say what they were trained on.
    """
    visual = getattr(clip, "visual", None)
    mean, std = (getattr(visual, name, None) for name in ("image_mean", "image_std"))
    if mean is None or std is None:
        return
    white = require("PIL.Image", extra="data").new("RGB", (64, 64), (255, 255, 255))
    found = transform(white).float().flatten(1).mean(dim=1)
    expected = (1 - found.new_tensor(mean)) / found.new_tensor(std)
    if found.shape != expected.shape or not torch.allclose(found, expected, atol=0.05):
        given, own = ([round(value, 2) for value in side.tolist()] for side in (found, expected))
        warnings.warn(
            f"preprocess turns white into {given}, the model's own mean and deviation into {own}: it is "
            "another model's, and pixels on a wrong scale are scored",
            UserWarning,
            stacklevel=4,
        )


def _names(transform: Any) -> list[str]:
    """Class names of a transform and of those that it is composed of."""
    parts = getattr(transform, "transforms", None)
    inner = parts if isinstance(parts, (list, tuple)) else []
    return [type(transform).__name__, *(name for part in inner for name in _names(part))]
