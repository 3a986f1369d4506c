"""Augmentation that keeps cached latents valid: an image has a few fixed views, and shows one in an epoch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from diva_rs.data.augment import Transform, center_transform, train_transform, view
from diva_rs.data.loader import scramble
from diva_rs.errors import ConfigError, shown

_MOST = 1000  # views: a mistyped number must not fill a disk


@dataclass(frozen=True)
class Views:
    """The views of every image: ``crops`` random crops that are drawn once (0: the centre crop), and with
    ``flip`` also the mirror image of each.

    A crop is a function of the image's id and its number alone, so that one latent cache serves runs of any
    seed; which view an epoch shows is a function of (seed, id, epoch), and as many epochs as there are views
    show each of them once.

    The trade-off: K views cost K times the disk and the encoding (64 KiB each at 4x64x64 in float32), and an
    image is never seen otherwise than in these K ways, where training with the VAE sees a new crop in every
    epoch. One view takes the VAE out of the step and all augmentation with it; from about as many views as
    epochs on, a cache repeats nothing that a run without one would not. Mirror images are cheap variety, but
    teach that left and right are alike: leave them out where orientation or text in the image matters.

    Raises ConfigError for numbers out of range.

    >>> len(Views()), len(Views(flip=True)), len(Views(crops=4, flip=True))
    (1, 2, 8)
    >>> views = Views(crops=4)
    >>> sorted(views.number(seed=0, key=7, epoch=epoch) for epoch in range(4))
    [0, 1, 2, 3]
    """

    crops: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        whole = isinstance(self.crops, int) and not isinstance(self.crops, bool)
        if not whole or not 0 <= self.crops <= _MOST:
            raise ConfigError(
                f"crops={shown(self.crops)}: a whole number from 0 (the centre crop) to {_MOST} is needed"
            )
        if not isinstance(self.flip, bool):
            raise ConfigError(f"flip={shown(self.flip)}: True or False is needed")

    def __len__(self) -> int:
        return max(1, self.crops) * (2 if self.flip else 1)

    def number(self, seed: int, key: int, epoch: int) -> int:
        """Which view of the image with id ``key`` an epoch shows."""
        start = int(scramble(np.array([key]), seed, 0)[0])
        return (start + epoch) % len(self)

    def show(self, transform: Transform, image: Any, key: int, number: int, name: str) -> Tensor:
        """View ``number`` of a PIL image as a tensor (3, H, W): the second half of the numbers mirrors."""
        crop, mirrored = number % max(1, self.crops), number >= max(1, self.crops)
        pixels = view(transform, image, (0, key, crop), name)
        return pixels.flip(-1) if mirrored else pixels


def transform_of(size: int, scale: tuple[float, float] | None, views: Views | None) -> Transform:
    """What crops: `train_transform` by ``scale``, or `center_transform` where no crop is random.

    Raises ConfigError where ``views`` asks for random crops and ``scale`` for none, or is something else.
    """
    if views is not None and not isinstance(views, Views):
        raise ConfigError(f"views={shown(views)}: diva_rs.data.Views(crops=..., flip=...) or None is needed")
    if views is not None and views.crops and scale is None:
        raise ConfigError(f"crops={views.crops} are random and scale=None asks for the centre crop: give one")
    if scale is None or (views is not None and not views.crops):
        return center_transform(size)
    return train_transform(size, scale)


class Viewing:
    """What the datasets share: the pixels that an image shows in this epoch."""

    transform: Transform
    seed: int
    epoch: int
    views: Views | None = None
    shown: int | None = None  # the view that all images show, while a cache is built

    def look(self, image: Any, key: int, name: str) -> Tensor:
        """The view of a PIL image with id ``key``."""
        if self.views is None:
            return view(self.transform, image, (self.seed, key, self.epoch), name)
        number = self.views.number(self.seed, key, self.epoch) if self.shown is None else self.shown
        return self.views.show(self.transform, image, key, number, name)
