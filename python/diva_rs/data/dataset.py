"""The part that image folders and shards share: from the bytes of an image to a sample."""

import os
from typing import Any

from torch import Tensor

from diva_rs.data.augment import Transform, Views, train_transform, view
from diva_rs.data.decode import MAX_PIXELS, BadImage, decode
from diva_rs.errors import ConfigError, DataError, shown

BAD_IMAGE_POLICIES = ("raise", "skip")


class Images:
    """Makes samples ``dict(images=(3, H, W) float, ids=int)`` of image files.

    ``transform`` maps an RGB PIL image to a unit tensor, by default ``train_transform(size)``. It runs under
    torch's generator keyed by (seed, id, epoch). A file that cannot be read raises DataError naming it, or
    with ``on_bad_image="skip"`` becomes a `BadImage`.
    """

    views: Views | None = None
    only_view: int | None = None  # the view of every image, while a cache is built

    def __init__(
        self,
        transform: Transform | None = None,
        size: int = 512,
        seed: int = 0,
        on_bad_image: str = "raise",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        check_policy(on_bad_image)
        self.transform = train_transform(size) if transform is None else transform
        self.seed, self.on_bad_image, self.max_pixels, self.epoch = seed, on_bad_image, max_pixels, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that keys the augmentation, and the order of shards."""
        self.epoch = epoch

    def sample(self, source: bytes | os.PathLike[str], key: int, name: str) -> dict[str, Any] | BadImage:
        """The sample of an image file, or of its bytes; ``name`` stands for it in errors."""
        try:
            image = decode(source, name, self.max_pixels)
        except DataError as err:
            return self.bad(name, str(err).removeprefix(f"{name}: "))
        return {"images": self._view(image, key, name), "ids": key}

    def bad(self, name: str, reason: str) -> BadImage:
        """A `BadImage`, or its error where bad images raise."""
        bad = BadImage(name, reason)
        if self.on_bad_image == "raise":
            raise bad.error()
        return bad

    def _view(self, image: Any, key: int, name: str) -> Tensor:
        if self.views is None:
            return view(self.transform, image, (self.seed, key, self.epoch), name)
        number = self.only_view
        if number is None:
            number = self.views.number(self.seed, key, self.epoch)
        return self.views.show(self.transform, image, key, number, name)


def check_policy(on_bad_image: str) -> None:
    """Raise ConfigError unless ``on_bad_image`` is "raise" or "skip"."""
    if on_bad_image not in BAD_IMAGE_POLICIES:
        raise ConfigError(f"on_bad_image={shown(on_bad_image)} is unknown: one of 'raise', 'skip'")
