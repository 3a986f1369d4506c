"""A folder of images, at any depth, as a dataset and as a loader."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from diva_rs._base.files import as_path, is_hidden, open_regular, read_bytes
from diva_rs.data.accounting import Accounting
from diva_rs.data.augment import Transform, Views, train_transform, transform_of, view
from diva_rs.data.decode import EXTENSIONS, MAX_PIXELS, BadImage, check_policy, decode, decode_pixels
from diva_rs.data.keys import name_key
from diva_rs.data.loader import ImageLoader, KeyedSampler, digest_of, text_of
from diva_rs.errors import ConfigError, DataError, shown


class Images:
    """Makes samples ``dict(images=(3, H, W) float, ids=int)`` of image files: see `ImageFolder`."""

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
        if not isinstance(max_pixels, int) or max_pixels < 1:
            raise ConfigError(f"max_pixels={shown(max_pixels)}: a whole number from 1 is needed")
        self.transform = train_transform(size) if transform is None else transform
        self.seed, self.on_bad_image, self.max_pixels = seed, on_bad_image, max_pixels
        # In shared memory, so that workers that live through several epochs (persistent_workers) see it.
        self._epoch = torch.zeros((), dtype=torch.int64, device="cpu")
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def epoch(self) -> int:
        """The epoch that keys the augmentation, and the order of shards."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, also for the workers of a DataLoader that run already."""
        self._epoch.fill_(epoch)

    def identity(self) -> dict[str, Any]:
        """What decides which images come and how they are cropped, as JSON values."""
        facts = {"dataset": type(self).__name__, "seed": self.seed, "transform": text_of(self.transform)}
        return facts | {"views": None if self.views is None else repr(self.views)}

    def sample(self, source: bytes | os.PathLike[str], key: int, name: str) -> dict[str, Any] | BadImage:
        """The sample of an image file, or of its bytes; ``name`` stands for it in errors."""
        read = decode_pixels if getattr(self.transform, "of_pixels", False) else decode
        try:
            image = read(source, name, self.max_pixels)
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
        shown = self.views.number(self.seed, key, self.epoch) if self.only_view is None else self.only_view
        return self.views.show(self.transform, image, key, shown, name)


class ImageFolder(Images, Dataset[Any]):
    """Every image file under ``root`` (links followed, hidden files left out), sorted by relative path.

    Item i is ``dict(images=(3, H, W) float, ids=int)``. The id is a hash of the relative path: the same on
    every machine, and when other files come or go. ``transform`` maps an RGB PIL image to a unit tensor, by
    default ``train_transform(size)``; it runs under torch's generator keyed by (seed, id, epoch).

    A file that cannot be read raises DataError; with ``on_bad_image="skip"`` it is a `BadImage` item, which
    `collate` removes.

    >>> import tempfile; from PIL import Image
    >>> with tempfile.TemporaryDirectory() as root:
    ...     Image.new("RGB", (20, 20)).save(f"{root}/a.png")
    ...     ImageFolder(root, size=8)[0]["images"].shape
    torch.Size([3, 8, 8])
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        transform: Transform | None = None,
        size: int = 512,
        seed: int = 0,
        on_bad_image: str = "raise",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        super().__init__(transform, size, seed, on_bad_image, max_pixels)
        self.root = as_path(root)
        self.accounting = Accounting()
        self.names = sorted(_image_files(self.root, self.accounting))
        self.accounting.used = len(self.names)
        if not self.names:
            kinds = ", ".join(sorted(EXTENSIONS))
            raise DataError(
                f"image folder {self.root} holds no image: looked for {kinds} at any depth; "
                f"{self.accounting}. Convert other pictures to JPEG or PNG; shard_loader reads tar files"
            )
        self.ids = np.fromiter((name_key(name) for name in self.names), np.int64, len(self.names))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any] | BadImage:
        path = self.root / self.names[index]  # an IndexError ends a `for` over the folder
        return self.sample(path, int(self.ids[index]), str(path))

    def files(self) -> Iterator[tuple[int, str, Callable[[], bytes]]]:
        """The id and the relative path of each image file, and a function that reads its content."""
        for key, name in zip(self.ids.tolist(), self.names, strict=True):
            yield key, name, partial(self._content, self.root / name)

    def _content(self, path: Path) -> bytes:
        try:
            return read_bytes(path, 3 * max(self.max_pixels, MAX_PIXELS))
        except OSError as err:
            raise BadImage(str(path), err.strerror or str(err)).error() from err

    def identity(self) -> dict[str, Any]:
        """What decides which images come and how they are cropped; not where the folder is."""
        files = digest_of(self.names, [os.path.join(self.root, name) for name in self.names])
        return {**super().identity(), "images": len(self), "files": files}

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
    views: Views | None = None,
    max_pixels: int = MAX_PIXELS,
    **loading: Any,
) -> ImageLoader:
    """Batches ``dict(images (B, 3, size, size) in [0, 1], ids (B,))`` from a folder of images.

    Images get the paper's augmentation with ``scale``, or a fixed centre crop with ``scale=None``. Order and
    crops are functions of (seed, epoch, relative path), the same for any number of workers.

    on_bad_image  "raise" (DataError), or "skip", which logs each bad file and lists it in ``loader.bad``
    views         a few fixed `Views` of each image in place of new crops, for a latent cache
    max_pixels    an image of more pixels is bad, and is not decompressed; Pillow's own limit does not apply
    loading       ``prefetch``, the batches that each worker reads ahead (None: two; more even out slow
                  storage), and ``pin_memory`` (None: where there is CUDA)

    >>> import tempfile; from PIL import Image
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for i in range(3):
    ...         Image.new("RGB", (20, 20)).save(f"{root}/{i}.png")
    ...     [len(batch["ids"]) for batch in folder_loader(root, batch=2, size=8, workers=0)]
    [2, 1]
    """
    # The dataset gives bad images as items: an error is then raised here, not in a worker's traceback.
    transform = transform_of(size, scale, views)
    dataset = ImageFolder(root, transform, seed=seed, on_bad_image="skip", max_pixels=max_pixels)
    dataset.views = views
    sampler = KeyedSampler(dataset.ids, seed, shuffle)
    return ImageLoader(dataset, batch, workers, on_bad_image, sampler, **loading)


def _image_files(root: Path, accounting: Accounting) -> Iterator[str]:
    """The relative paths of the images under ``root``; what is left out goes into ``accounting``."""

    def unreadable(err: OSError) -> None:
        if os.fspath(err.filename) == os.fspath(root):
            raise DataError(f"image folder {root} cannot be listed: {err.strerror or err}")
        accounting.leave_out("that cannot be listed", _relative(err.filename, root) + "/", picture=True)

    seen = set[tuple[int, int]]()
    for folder, below, files in os.walk(root, followlinks=True, onerror=unreadable):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            # A link that leads back up is no loss; another name of a folder may be a separate class.
            if not any(os.path.samefile(folder, above) for above in Path(folder).parents):
                accounting.leave_out("linked a second time", _relative(folder, root) + "/", picture=True)
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inside = Path(folder).relative_to(root)
        for name in filter(is_hidden, below):
            accounting.leave_out("hidden", f"{(inside / name).as_posix()}/")
        below[:] = sorted(name for name in below if not is_hidden(name))
        for name in sorted(files):
            path = (inside / name).as_posix()
            if accounting.is_image(path, partial(_head, root / path)):
                yield path


def _relative(path: str, root: Path) -> str:
    return Path(path).relative_to(root).as_posix()


def _head(path: Path) -> bytes | None:
    try:
        with open_regular(path) as file:
            return file.read(16)
    except OSError:  # a broken link, perhaps to a folder of pictures
        return None
