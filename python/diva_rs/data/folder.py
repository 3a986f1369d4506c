"""A folder of images, at any depth, as a dataset and as a loader."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from diva_rs._base.arguments import takes
from diva_rs._base.kinds import EPOCH, SEED, function, path
from diva_rs._base.settings import integer, optional
from diva_rs.data.augment import Transform, train_transform
from diva_rs.data.decode import EXTENSIONS, MAX_PIXELS, BadImage, decode
from diva_rs.data.loader import ImageLoader, KeyedSampler, checked_policy, name_key
from diva_rs.data.views import Viewing, Views, transform_of
from diva_rs.errors import DataError


class NoSuchImage(DataError, IndexError):
    """There are fewer images; an IndexError too, which ends a `for` over the folder."""


class ImageFolder(Viewing, Dataset[Any]):
    """Every image file under ``root`` (links followed, hidden files left out), sorted by relative path.

    Item i is ``dict(images=(3, H, W) float, ids=int)``; the id is a hash of the relative path, so it is the
    same on every machine and does not change when other files come or go. ``transform`` takes an RGB PIL
    image and gives a unit tensor; it runs under torch's generator keyed by (seed, id, epoch). Default:
    ``train_transform(size)``.

    A file that cannot be read raises DataError naming it; with ``on_bad_image="skip"`` the item is a
    ``BadImage``, which ``collate`` leaves out. Raises DataError for a missing or empty folder.

    >>> import tempfile; from PIL import Image
    >>> with tempfile.TemporaryDirectory() as root:
    ...     Image.new("RGB", (20, 20)).save(f"{root}/a.png")
    ...     ImageFolder(root, size=8)[0]["images"].shape
    torch.Size([3, 8, 8])
    """

    @takes(
        root=path(),
        transform=optional(function("a function of a PIL image")),
        seed=SEED,
        max_pixels=integer(1),
    )
    def __init__(
        self,
        root: str | os.PathLike[str],
        transform: Transform | None = None,
        size: int = 512,
        seed: int = 0,
        on_bad_image: str = "raise",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            what = "is a file" if self.root.exists() else "does not exist"
            raise DataError(f"image folder {self.root} {what}: give the folder that holds the images")
        self.names = sorted(_image_files(self.root))
        if not self.names:
            raise DataError(
                f"image folder {self.root} holds no image: "
                f"looked for {', '.join(sorted(EXTENSIONS))} at any depth"
            )
        self.transform = train_transform(size) if transform is None else transform
        self.ids = np.fromiter((name_key(name) for name in self.names), np.int64, len(self.names))
        self.seed, self.max_pixels, self.epoch = seed, max_pixels, 0
        self.on_bad_image = checked_policy(on_bad_image)

    @takes(epoch=EPOCH)
    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that keys the augmentation."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.names)

    @takes(index=integer(-(1 << 62), 1 << 62))
    def __getitem__(self, index: int) -> dict[str, Any] | BadImage:
        if not -len(self) <= index < len(self):
            raise NoSuchImage(f"index={index}: the folder holds {len(self)} images")
        path, key = self.root / self.names[index], int(self.ids[index])
        try:
            image = decode(path, str(path), self.max_pixels)
        except DataError as err:
            bad = BadImage(str(path), str(err).removeprefix(f"{path}: "))
            if self.on_bad_image == "raise":
                raise bad.error() from err
            return bad
        return {"images": self.look(image, key, str(path)), "ids": key}

    def __repr__(self) -> str:
        return f"ImageFolder({str(self.root)!r}, {len(self)} images)"


def folder_loader(
    root: str | os.PathLike[str],
    batch: int = 16,
    size: int = 512,
    workers: int = 2,
    seed: int = 0,
    scale: tuple[float, float] | None = (0.9, 1.0),
    on_bad_image: str = "raise",
    shuffle: bool = True,
    **loading: Any,
) -> ImageLoader:
    """Batches ``dict(images (B, 3, size, size) in [0, 1], ids (B,))`` from a folder of images.

    The paper's augmentation with ``scale``, or one fixed centre crop with ``scale=None`` (for a latent
    cache). Order and crops are functions of (seed, epoch, relative path): the same for any number of workers.
    ``on_bad_image``: "raise", or "skip", which logs each bad file and lists it in ``loader.bad``.
    ``loading``: ``views``, a few fixed views of each image in place of a new crop in each epoch, for a latent
    cache with augmentation (see `Views`); ``prefetch``, the batches that each worker reads ahead (None: two),
    each of them in memory: more even out slow storage (``waiting`` in a run's log says which share of the
    time it waits for its data); and ``pin_memory`` (by default where there is CUDA).

    Raises DataError for a missing or empty folder and, while iterating, for a bad image; ConfigError for a
    setting out of range; DependencyError without Pillow or torchvision.

    >>> import tempfile; from PIL import Image
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for i in range(3):
    ...         Image.new("RGB", (20, 20)).save(f"{root}/{i}.png")
    ...     [len(batch["ids"]) for batch in folder_loader(root, batch=2, size=8, workers=0)]
    [2, 1]
    """
    views: Views | None = loading.pop("views", None)
    transform = transform_of(size, scale, views)
    checked_policy(on_bad_image)
    # The dataset hands bad images over as items, so that an error is raised here, not inside a worker's
    # traceback.
    dataset = ImageFolder(root, transform, seed=seed, on_bad_image="skip")
    dataset.views = views
    return ImageLoader(
        dataset, batch, workers, on_bad_image, KeyedSampler(dataset.ids, seed, shuffle), **loading
    )


def _image_files(root: Path) -> Iterator[str]:
    seen = set[tuple[int, int]]()
    for folder, below, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back up
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in files:
            # "._1.jpg" beside "1.jpg" is what macOS archives leave: metadata, not an image.
            if not name.startswith(".") and name.rpartition(".")[2].lower() in EXTENSIONS:
                yield (Path(folder) / name).relative_to(root).as_posix()
