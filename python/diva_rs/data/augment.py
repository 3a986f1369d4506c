"""The paper's augmentation, keyed: the crop of an image is a function of (seed, sample id, epoch) and nothing
else."""

import hashlib
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diva_rs._base.arguments import checked, described, refused_by, takes
from diva_rs._base.kinds import function
from diva_rs._base.optional import require
from diva_rs._base.settings import integer, number, several
from diva_rs.errors import ConfigError, DataError, shown

_LARGEST = 1 << 15  # pixels along a side
_SCALE = several(number(), 2)
_WORD = integer(-(1 << 63), (1 << 64) - 1)
Transform = Callable[[Any], Any]


def train_transform(size: int = 512, scale: tuple[float, float] = (0.9, 1.0)) -> Transform:
    """RandomResizedCrop to (size, size), bicubic, then unit pixels: the training view of DIVA (official code,
    facts).

    The result takes a PIL image and gives a float32 tensor (3, size, size) in [0, 1]. It draws from torch's
    generator: call it through ``keyed`` for crops that do not depend on the order of calls. Raises
    ConfigError for a bad size or scale, DependencyError without torchvision.

    >>> from PIL import Image
    >>> train_transform(16)(Image.new("RGB", (40, 30), "white")).mean()
    tensor(1.)
    """
    transforms = require("torchvision.transforms", extra="data")
    low, high = checked("scale", scale, _SCALE)
    if not 0 < low <= high <= 1:
        raise ConfigError(
            f"scale={scale} must be 0 < low <= high <= 1: the share of the image that a crop keeps"
        )
    crop = transforms.RandomResizedCrop(
        _checked(size), scale=(low, high), interpolation=transforms.InterpolationMode.BICUBIC
    )
    return transforms.Compose([crop, unit_tensor])  # type: ignore[no-any-return]


def center_transform(size: int = 512) -> Transform:
    """Resize of the shorter side, bicubic, and centre crop to (size, size): one fixed view, as a latent cache
    needs.

    >>> from PIL import Image
    >>> center_transform(16)(Image.new("RGB", (40, 30))).shape
    torch.Size([3, 16, 16])
    """
    transforms = require("torchvision.transforms", extra="data")
    resize = transforms.Resize(_checked(size), interpolation=transforms.InterpolationMode.BICUBIC)
    return transforms.Compose([resize, transforms.CenterCrop(size), unit_tensor])  # type: ignore[no-any-return]


def unit_tensor(image: Any) -> Tensor:
    """A float32 tensor (3, H, W) in [0, 1] from an RGB PIL image.

    >>> from PIL import Image
    >>> unit_tensor(Image.new("RGB", (2, 1), (255, 0, 51)))[:, 0, 0]
    tensor([1.0000, 0.0000, 0.2000])
    """
    if not isinstance(image, require("PIL.Image", extra="data").Image):
        raise DataError(f"image={described(image)}: a PIL image is needed")
    array = np.array(image.convert("RGB"))  # (H, W, 3) uint8
    return torch.from_numpy(array).permute(2, 0, 1).contiguous().float().div_(255)


@takes(transform=function("a function of a PIL image"), key=several(_WORD, 3))
def keyed(transform: Transform, image: Any, key: tuple[int, int, int]) -> Any:
    """``transform(image)`` under torch's CPU generator seeded by ``key`` = (seed, sample id, epoch), then
    restored.

    Any transform that draws from torch's generator (torchvision's do) becomes independent of workers and
    order.

    >>> import torch
    >>> draw = lambda _: float(torch.rand(()))
    >>> keyed(draw, None, (0, 7, 1)) == keyed(draw, None, (0, 7, 1)) != keyed(draw, None, (0, 7, 2))
    True
    """
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed the CUDA generators too, which fork_rng(devices=[]) does not restore.
        torch.default_generator.manual_seed(_augment_seed(*key))
        with refused_by("the transform", "the image"):
            return transform(image)


def view(transform: Transform, image: Any, key: tuple[int, int, int], name: str) -> Tensor:
    """``keyed`` with the result checked: a floating tensor (3, H, W), or DataError naming the image."""
    try:
        result = keyed(transform, image, key)
    except DataError as err:
        raise DataError(f"{name}: {err}") from err
    if not isinstance(result, Tensor) or result.ndim != 3 or not result.is_floating_point():
        got = f"{result.dtype} {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        raise DataError(
            f"{name}: the transform gave {got}, a floating tensor (3, H, W) is needed: "
            "end it with diva_rs.data.unit_tensor or torchvision's ToTensor"
        )
    return result


def _augment_seed(seed: int, sample: int, epoch: int) -> int:
    """63 bits for torch's generator from the key."""
    mask = 2**64 - 1
    packed = struct.pack("<QQQ8s", seed & mask, sample & mask, epoch & mask, b"augment\0")
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


def _checked(size: int) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or not 0 < size <= _LARGEST:
        raise ConfigError(f"size={shown(size)} must be a positive number of pixels, at most {_LARGEST}")
    return size
