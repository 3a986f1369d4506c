"""Views of an image: the paper's augmentation, and the fixed views of a latent cache. Both are keyed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import diva_rs._native as _native
from diva_rs._base.optional import library_errors, require
from diva_rs.data.keys import crop_seed, scramble
from diva_rs.errors import ConfigError, DataError, a_type, shown

_MOST_CROPS = 1000  # a mistyped number must not fill a disk
Transform = Callable[[Any], Any]
_Window = tuple[int, int, int, int]  # top, left, height, width


def train_transform(size: int = 512, scale: tuple[float, float] = (0.9, 1.0)) -> Transform:
    """DIVA's training view of a PIL image: a RandomResizedCrop to a float32 tensor (3, size, size) in [0, 1],
    bicubic. It draws from torch's generator. The pixels are Pillow's to the bit, resized along rows and then
    along columns (Pillow 13 takes the other order for some sizes).

    >>> from PIL import Image
    >>> train_transform(16)(Image.new("RGB", (40, 30), "white")).mean()
    tensor(1.)
    """
    require("torchvision.transforms", extra="data")
    if not 0 < scale[0] <= scale[1] <= 1:  # torchvision would crop the centre, silently
        raise ConfigError(f"scale={scale} must be 0 < low <= high <= 1: the share that a crop keeps")
    return _RandomCrop(size, scale)


@dataclass(frozen=True)
class _RandomCrop:
    """torchvision's RandomResizedCrop, bicubic."""

    size: int
    scale: tuple[float, float]
    of_pixels = True  # a picture's bytes serve as well as a PIL image

    def __call__(self, image: Any) -> Tensor:
        crop, pixels = require("torchvision.transforms", extra="data").RandomResizedCrop, _pixels(image)
        window = crop.get_params(pixels, self.scale, (3 / 4, 4 / 3))
        return _resampled(pixels, window, (self.size, self.size), (0, 0, self.size, self.size))


def center_transform(size: int = 512) -> Transform:
    """One fixed view: the shorter side resized to ``size``, bicubic, then a centre crop to (size, size).

    >>> from PIL import Image
    >>> center_transform(16)(Image.new("RGB", (40, 30))).shape
    torch.Size([3, 16, 16])
    """
    return _CenterCrop(size)


@dataclass(frozen=True)
class _CenterCrop:
    """torchvision's Resize, bicubic, and CenterCrop."""

    size: int
    of_pixels = True

    def __call__(self, image: Any) -> Tensor:
        pixels = _pixels(image)
        sides = pixels.shape[1:]
        height, width = (self.size * side // min(sides) for side in sides)
        top, left = (round((side - self.size) / 2) for side in (height, width))
        return _resampled(pixels, (0, 0, *sides), (height, width), (top, left, self.size, self.size))


def _pixels(image: Any) -> Tensor:
    """The bytes (3, H, W) of a PIL image; those of a picture that is decoded to bytes already."""
    if isinstance(image, Tensor):
        return image
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _resampled(pixels: Tensor, window: _Window, size: tuple[int, int], kept: _Window) -> Tensor:
    """The window of a picture at another size, and of that the window ``kept``: (3, H, W) in [0, 1]."""
    rows = pixels.permute(1, 2, 0).contiguous()
    return _native.resampled(rows.numpy().reshape(-1), rows.shape[1], window, size, kept)


def unit_tensor(image: Any) -> Tensor:
    """A float32 tensor (3, H, W) in [0, 1] from an RGB PIL image.

    >>> from PIL import Image
    >>> unit_tensor(Image.new("RGB", (2, 1), (255, 0, 51)))[:, 0, 0]
    tensor([1.0000, 0.0000, 0.2000])
    """
    array = np.array(image.convert("RGB"))  # (H, W, 3) uint8
    return torch.from_numpy(array).permute(2, 0, 1).contiguous().float().div_(255)


def keyed(transform: Transform, image: Any, key: tuple[int, int, int], purpose: bytes = b"augment") -> Any:
    """Run ``transform(image)`` with torch's CPU generator seeded by ``key`` = (seed, sample id, epoch), and
    restored afterwards. The result is independent of workers and order.

    >>> draw = lambda _: float(torch.rand(()))
    >>> keyed(draw, None, (0, 7, 1)) == keyed(draw, None, (0, 7, 1)) != keyed(draw, None, (0, 7, 2))
    True
    """
    # A default device would otherwise take the transform's tensors, and its draws from another generator.
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed the CUDA generators too, which fork_rng(devices=[]) does not restore.
        torch.default_generator.manual_seed(crop_seed(*key, purpose))
        with library_errors("the transform", "the image"):
            return transform(image)


@dataclass(frozen=True)
class Views:
    """The fixed views of every image: ``crops`` random crops (0: the centre crop), and mirrored if ``flip``.

    A latent cache holds all of them: K views cost K times the disk (64 KiB each at 4x64x64 in float32) and
    the encoding. A crop is a function of the image's id and the crop's number, so one cache serves runs of
    any seed. The view of an epoch is a function of (seed, id, epoch): K epochs show each view once. Leave
    ``flip`` out where orientation or text in the image matters.

    >>> len(Views()), len(Views(flip=True)), len(Views(crops=4, flip=True))
    (1, 2, 8)
    >>> views = Views(crops=4)
    >>> sorted(views.number(seed=0, key=7, epoch=epoch) for epoch in range(4))
    [0, 1, 2, 3]
    """

    crops: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.crops, int) or not 0 <= self.crops <= _MOST_CROPS:
            raise ConfigError(f"crops={shown(self.crops)}: an integer from 0 to {_MOST_CROPS} is needed")

    def __len__(self) -> int:
        return max(1, self.crops) * (2 if self.flip else 1)

    def number(self, seed: int, key: int, epoch: int) -> int:
        """Which view of the image with id ``key`` an epoch shows."""
        return (int(scramble(np.array([key]), seed, 0)[0]) + epoch) % len(self)

    def show(self, transform: Transform, image: Any, key: int, number: int, name: str) -> Tensor:
        """View ``number`` of a PIL image as a tensor (3, H, W); the second half is mirrored."""
        mirrored, crop = divmod(number, max(1, self.crops))
        pixels = view(transform, image, (0, key, crop), name)
        return pixels.flip(-1) if mirrored else pixels


def transform_of(size: int, scale: tuple[float, float] | None, views: Views | None) -> Transform:
    """The crop of a loader: `train_transform` by ``scale``, or `center_transform` if no crop is random."""
    crops = None if views is None else views.crops
    if crops and scale is None:
        raise ConfigError(f"crops={crops} are random and scale=None means the centre crop: give one")
    return center_transform(size) if scale is None or crops == 0 else train_transform(size, scale)


def contrast_views(
    images: Tensor, keys: Iterable[int], seed: int, epoch: int, size: tuple[int, int]
) -> Tensor:
    """The augmented views (B, 3, *size) of DCR's contrast, of images (B, 3, H, W) in [0, 1]: slightly other
    colours, mirrored and turned upside down or not, and a crop of 0.9 to 1.0 of the image.

    A view is a function of (seed, key, epoch). Order and strengths are those of github.com/boyuh/DCR.
    """
    transforms = require("torchvision.transforms.v2", extra="data")
    view = transforms.Compose(
        [
            transforms.ColorJitter(brightness=0.1, contrast=0.1, saturation=0.1, hue=0.05),
            transforms.RandomHorizontalFlip(),
            transforms.RandomVerticalFlip(),
            transforms.RandomResizedCrop(size, scale=(0.9, 1.0), ratio=(0.9, 1.1)),
        ]
    )
    pairs = zip(images, keys, strict=True)
    return torch.stack([keyed(view, image, (seed, int(key), epoch), b"contrast") for image, key in pairs])


def view(transform: Transform, image: Any, key: tuple[int, int, int], name: str) -> Tensor:
    """`keyed`, with the result checked: a floating tensor (3, H, W), or a DataError that names the image."""
    try:
        result = keyed(transform, image, key)
    except DataError as err:
        raise DataError(f"{name}: {err}") from err
    return image_pixels(result, f"{name}: the transform", "end it with diva_rs.data.unit_tensor")


def image_pixels(pixels: Any, what: str, advice: str) -> Tensor:
    """What a transform gave, if it is a floating tensor (3, H, W); otherwise raises DataError."""
    if not isinstance(pixels, Tensor) or pixels.ndim != 3 or not pixels.is_floating_point():
        got = f"{pixels.dtype} {tuple(pixels.shape)}" if isinstance(pixels, Tensor) else a_type(pixels)
        raise DataError(f"{what} gave {got}, a floating tensor (3, H, W) is needed: {advice}")
    return pixels
