"""Webdataset shards (tar files of images) as a dataset and as a loader."""

import glob
import os
import random
import tarfile
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from diva_rs._base.files import open_regular
from diva_rs._base.optional import require
from diva_rs._base.world import rank_and_world
from diva_rs.data.augment import Transform, Views, transform_of
from diva_rs.data.decode import EXTENSIONS, MAX_PIXELS, BadImage
from diva_rs.data.folder import Images
from diva_rs.data.keys import name_key, scramble
from diva_rs.data.loader import ImageLoader, digest_of
from diva_rs.errors import ConfigError, DataError

_MOST_BYTES = 3 * MAX_PIXELS  # of an image file: an uncompressed one of the most pixels
_MOST_HEADER = 1 << 16  # bytes of a name or of other extended headers
_EXTENDED = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, b"X")
_BUFFER = 1000  # undecoded samples that a worker shuffles among, about 100 MB of JPEG files

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class ImageShards(Images, IterableDataset[Any]):
    """The images of tar shards, read with the ``webdataset`` library.

    ``pattern`` is a path with braces or wildcards (``"cc3m/{00000..00331}.tar"``) or a list of them, local
    files only. Items are those of `ImageFolder`. The id is a hash of the sample's ``__key__``; keys must be
    unique across shards, as img2dataset's are. Shards are divided among ranks and workers; with ``shuffle``
    their order and a buffer of samples are shuffled by (seed, epoch).

    A bad image, a sample without an image and a truncated or damaged shard raise DataError. With
    ``on_bad_image="skip"`` they are `BadImage` items, and the samples before the damage are used.
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
        super().__init__(transform, size, seed, on_bad_image, max_pixels)
        self.shuffle = shuffle
        # Rank and number of ranks; `ImageLoader` sets it, since workers have not joined the ranks.
        self.share: tuple[int, int] | None = None
        # Where the next iteration starts: see `ImageLoader.position`.
        self.start: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return f"ImageShards({len(self.shards)} shards from {self.shards[0]!r})"

    def identity(self) -> dict[str, Any]:
        """What decides which images come, in which order and how they are cropped."""
        files = digest_of([os.path.basename(shard) for shard in self.shards], self.shards)
        facts = {"shards": len(self.shards), "files": files, "shuffle": self.shuffle}
        return {**super().identity(), **facts}

    def __iter__(self) -> Iterator[dict[str, Any] | BadImage]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        turn, *read = self.start or (0,) * (1 + workers)
        part = (worker + turn) % workers  # the worker whose turn was next is now the first
        for sample in islice(self._samples(part, workers), read[part], None):
            if isinstance(sample, BadImage):
                yield self.bad(sample.name, sample.reason)
            else:
                yield self._item(sample)

    def _samples(self, part: int, parts: int) -> Iterator[dict[str, Any] | BadImage]:
        """The undecoded samples of a part of this rank's shards, in the order of the epoch."""
        wds = require("webdataset", extra="data")
        shards = self.shards
        if self.shuffle:
            keys = np.array([name_key(os.path.basename(shard)) for shard in shards], np.uint64)
            shards = [shards[i] for i in np.argsort(scramble(keys, self.seed, self.epoch), kind="stable")]
        rank, world = self.share or rank_and_world()
        mine = shards[rank::world][part::parts]
        samples = (sample for shard in mine for sample in _samples_of(shard))
        if not self.shuffle:
            return samples
        # Named by the first shard: the part's number would tie the order to it.
        name = f"{self.seed} {self.epoch} {mine[0] if mine else ''}"
        rng = random.Random(name.encode("utf-8", "surrogateescape"))
        return wds.filters.shuffle(_BUFFER, initial=100, rng=rng)(samples)  # type: ignore[no-any-return]

    def _item(self, sample: dict[str, Any]) -> dict[str, Any] | BadImage:
        key = sample["__key__"]
        name = f"{sample['__url__']}, sample {key!r}"
        members = [member for member in sample if not member.startswith("__")]
        images = [member for member in members if member.rpartition(".")[2] in EXTENSIONS]  # "v2.jpg" too
        images.sort(key=lambda member: member not in EXTENSIONS)
        if not images:
            return self.bad(name, f"no image among its members (found {', '.join(members) or 'nothing'})")
        return self.sample(sample[images[0]], name_key(key), name)


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
    dataset = ImageShards(pattern, transform, seed=seed, on_bad_image="skip", shuffle=shuffle)
    dataset.views = views
    return ImageLoader(dataset, batch, workers, on_bad_image, **loading)


class _StrictInfo(tarfile.TarInfo):
    """Raises at a damaged header and at a missing end mark, where tarfile would end the shard silently."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_StrictInfo":
        info = super().frombuf(buf, encoding, errors)
        # tarfile would read the content of an extended header whole, of any size.
        most = _MOST_HEADER if info.type in _EXTENDED else info.size
        if not 0 <= info.size <= most or info.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(f"a header declares {info.size} bytes")
        return info

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_StrictInfo":
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # the proper end: a block of zeros
        except tarfile.HeaderError as err:
            raise tarfile.ReadError(f"{err}" if tar.offset else f"not a tar file ({err})") from err


def _samples_of(shard: str) -> Iterator[dict[str, Any] | BadImage]:
    """The samples of a shard as webdataset groups its members, then its damage if there is any."""
    damage: list[BadImage] = []
    try:
        yield from require("webdataset.tariterators", extra="data").group_by_keys(_members(shard, damage))
    except ValueError as err:  # two members of one name
        damage.append(BadImage(shard, str(err.args[0]) if err.args else "damaged shard"))
    yield from damage


def _members(shard: str, damage: list[BadImage]) -> Iterator[dict[str, Any]]:
    """The regular members of a shard as webdataset's ``tar_file_expander`` gives them, up to its damage."""
    try:
        with open_regular(shard) as file, tarfile.open(fileobj=file, mode="r|*", tarinfo=_StrictInfo) as tar:
            for info in tar:
                hidden = os.path.basename(info.name).startswith(".") or info.name.startswith("__")
                if info.isreg() and not hidden:
                    yield {"fname": info.name, "data": _image_bytes(tar, info), "__url__": shard}
                tar.members = []  # type: ignore[attr-defined]  # else a shard's headers stay in memory
    except Exception as err:  # tarfile raises ValueError, IndexError, ... on hostile headers
        reason = getattr(err, "strerror", None) or str(err)
        damage.append(BadImage(shard, f"truncated or damaged shard ({reason})"))
    yield {}  # webdataset's mark for the end of a shard


def _image_bytes(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    """The bytes of a member that may be the image; no other member is read into memory."""
    if info.name.rpartition(".")[2].lower() not in EXTENSIONS:
        return b""
    if info.issparse() or info.size > _MOST_BYTES:
        raise tarfile.ReadError(f"{info.name!r} declares {info.size} bytes")
    member = tar.extractfile(info)
    return b"" if member is None else member.read()


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
            found = sorted(glob.glob(path)) if glob.has_magic(path) and not os.path.exists(path) else [path]
            if not found or not os.path.isfile(found[0]):
                raise DataError(f"shard {path!r} does not exist: looked for it as part of {part!r}")
            shards += found
    if not shards:
        raise DataError("no shards: give a path such as 'data/{00000..00331}.tar'")
    return shards
