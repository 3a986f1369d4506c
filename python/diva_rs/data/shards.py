"""Webdataset shards (tar files of images) as a dataset and as a loader."""

import glob
import os
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from diva_rs._base.optional import require
from diva_rs._base.world import rank_and_world
from diva_rs.data.accounting import Accounting
from diva_rs.data.augment import Transform, Views, transform_of
from diva_rs.data.decode import MAX_PIXELS, BadImage
from diva_rs.data.folder import Images
from diva_rs.data.keys import name_key, scramble
from diva_rs.data.loader import ImageLoader, digest_of, logger
from diva_rs.data.tars import Member, labels, read_images
from diva_rs.errors import ConfigError, DataError

_BUFFER = 1000  # undecoded images that a worker shuffles among, about 100 MB of JPEG files

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class ImageShards(Images, IterableDataset[Any]):
    """The images of tar shards, read with the ``webdataset`` library.

    ``pattern`` is a path with braces or wildcards (``"cc3m/{00000..00331}.tar"``) or a list of them, local
    files only. Items are those of `ImageFolder`. Shards are divided among ranks and workers; with ``shuffle``
    their order and a buffer of images are shuffled by (seed, epoch).

    The id is a hash of the shard's file name and the member's name. Where file names repeat in different
    folders, as many folder names as distinguish the shards belong to the id.

    A sample is one image, with the ending alone after the first dot of its name (``000.jpg``); further images
    of the sample (``000.mask.png``), and members of other kinds, are left out and counted. Where no member
    has such a name, the dots are part of the names (``frame.0001.jpg``, ``frame.0002.jpg``) and each image is
    used.

    A bad image and a truncated or damaged shard raise DataError. With ``on_bad_image="skip"`` they are
    `BadImage` items, and the images before the damage are used.
    """

    def __init__(
        self,
        pattern: Paths,
        transform: Transform | None = None,
        size: int = 512,
        seed: int = 0,
        on_bad_image: str = "raise",
        shuffle: bool = True,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.shards = _expand(pattern)
        self.labels = labels(self.shards)
        super().__init__(transform, size, seed, on_bad_image, max_pixels)
        self.shuffle = shuffle
        # `ImageLoader` sets these: rank and number of ranks, since workers have not joined the ranks; whether
        # items carry the accounting; and where the next iteration starts (its ``position``).
        self.share: tuple[int, int] | None = None
        self.reports, self.start = False, ()

    def __repr__(self) -> str:
        return f"ImageShards({len(self.shards)} shards from {self.shards[0]!r})"

    def identity(self) -> dict[str, Any]:
        """What decides which images come, in which order and how they are cropped."""
        files = digest_of(self.labels, self.shards)
        facts = {"shards": len(self.shards), "files": files, "shuffle": self.shuffle}
        return {**super().identity(), **facts}

    def files(self) -> Iterator[tuple[int, str, Callable[[], bytes]]]:
        """The id of each image, its shard and name there, and a function that gives its content, in order."""
        for shard, label in zip(self.shards, self.labels, strict=True):
            for found in self._images_of(shard, label, {}):
                if isinstance(found, BadImage):
                    raise found.error()
                yield found.key, found.path, partial(bytes, found.data)

    def __iter__(self) -> Iterator[dict[str, Any] | BadImage]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        turn, *read = self.start or (0,) * (1 + workers)
        part = (worker + turn) % workers  # the worker whose turn was next is now the first
        accounts = dict[str, Accounting]()  # of the shards read since the last item that carried any
        for found in islice(self._images(part, workers, accounts), read[part], None):
            if isinstance(found, BadImage):
                yield self.bad(found.name, found.reason)
                continue
            item = self.sample(found.data, found.key, found.place)
            if self.reports and isinstance(item, dict):
                item["accounts"] = dict(accounts)
                accounts.clear()
            yield item
        if self.reports and accounts:
            yield {"accounts": accounts}

    def _images(self, part: int, parts: int, accounts: dict[str, Accounting]) -> Iterator[Member | BadImage]:
        """The undecoded images of a part of this rank's shards, in the order of the epoch."""
        wds = require("webdataset", extra="data")
        shards = list(zip(self.shards, self.labels, strict=True))
        if self.shuffle:
            keys = np.array([name_key(label) for label in self.labels], np.uint64)
            shards = [shards[i] for i in np.argsort(scramble(keys, self.seed, self.epoch), kind="stable")]
        rank, world = self.share or rank_and_world()
        mine = shards[rank::world][part::parts]
        images = (image for shard, label in mine for image in self._images_of(shard, label, accounts))
        if not self.shuffle:
            return images
        # Named by the first shard: the part's number would tie the order to it.
        name = f"{self.seed} {self.epoch} {mine[0][1] if mine else ''}"
        rng = random.Random(name.encode("utf-8", "surrogateescape"))
        return wds.filters.shuffle(_BUFFER, initial=100, rng=rng)(images)  # type: ignore[no-any-return]

    def _images_of(self, shard: str, label: str, accounts: dict[str, Any]) -> Iterator[Member | BadImage]:
        account = Accounting()
        for image in read_images(shard, label, 3 * max(self.max_pixels, MAX_PIXELS), account):
            accounts[label] = account
            yield image
        accounts[label] = account


def shard_loader(
    pattern: Paths,
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
    """Batches ``dict(images (B, 3, size, size) in [0, 1], ids (B,))`` from webdataset shards.

    As `folder_loader`. Which samples share a batch depends on the number of workers; an image's pixels and id
    do not. The length of an epoch is not known in advance (``len`` raises TypeError).

    >>> import tarfile, tempfile; from PIL import Image
    >>> with tempfile.TemporaryDirectory() as root:
    ...     with tarfile.open(f"{root}/00.tar", "w") as shard:
    ...         for i in range(3):
    ...             Image.new("RGB", (20, 20)).save(f"{root}/{i}.png")
    ...             shard.add(f"{root}/{i}.png", f"{i}.png")
    ...     [len(batch["ids"]) for batch in shard_loader(root + "/{00..00}.tar", batch=2, size=8, workers=0)]
    [2, 1]
    """
    transform = transform_of(size, scale, views)
    dataset = ImageShards(pattern, transform, size, seed, "skip", shuffle, max_pixels)
    dataset.views = views
    return ImageLoader(dataset, batch, workers, on_bad_image, **loading)


def _expand(pattern: Paths) -> list[str]:
    """The files that a pattern, or a list of patterns, names."""
    expand_urls = require("webdataset.shardlists", extra="data").expand_urls
    patterns = [pattern] if isinstance(pattern, (str, os.PathLike)) else pattern
    shards: list[str] = []
    for part in [os.path.expanduser(one) for one in patterns]:
        if "://" in part or part.startswith(("pipe:", "-")):  # webdataset would fetch or run it
            raise ConfigError(f"shards {part!r}: only local files are read; download them or mount the store")
        try:
            paths = expand_urls(part)
        except (ValueError, AssertionError) as err:
            raise ConfigError(f"shards {part!r}: {err}") from err
        for path in paths:
            found = [path] if os.path.exists(path) else sorted(glob.glob(path))
            if not found or not os.path.isfile(found[0]):
                what = f"is a folder: give its files, such as {path + '/*.tar'!r}"
                what = what if os.path.isdir(path) else f"does not exist: looked for it as part of {part!r}"
                raise DataError(f"shard {path!r} {what}")
            shards += found
    once = list(dict.fromkeys(map(os.path.abspath, shards)))
    if not once:
        raise DataError("no shards: give a path such as 'data/{00000..00331}.tar'")
    if len(once) < len(shards):
        logger.warning("%s names stand for %s shards: each is read once", len(shards), len(once))
        return once
    return shards
