"""Images in tar files: their members in order, and a name for each tar that does not depend on its mount."""

import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from diva_rs._base.files import open_regular, reading
from diva_rs.data.accounting import Accounting
from diva_rs.data.decode import EXTENSIONS, BadImage
from diva_rs.data.keys import name_key
from diva_rs.errors import DataError

_MOST_HEADER = 1 << 16  # bytes of a name or of other extended headers
_MOST_ZEROS = 1 << 15  # blocks of 512 bytes after a tar; more is a hole of a broken download
_EXTENDED = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, b"X")


class Member(NamedTuple):
    """An image file in a shard."""

    key: int  # the sample's id
    path: str  # the shard's label and the member's name
    place: str  # the same for errors
    data: bytes


def labels(shards: Sequence[str]) -> list[str]:
    """The base names of shards, with as many of the folders above as distinguish equal names."""
    parts = [os.path.abspath(shard).replace(os.sep, "/").split("/") for shard in shards]
    found = [names[-1] for names in parts]
    depth = 1
    while repeated := {name for name, count in Counter(found).items() if count > 1}:
        depth += 1
        found = ["/".join(p[-depth:]) if f in repeated else f for f, p in zip(found, parts, strict=True)]
    return found


def check_end(shard: Path) -> None:
    """Raise DataError for an uncompressed tar that ends early, which other readers take for its end."""
    with reading(shard), open_regular(shard) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 1024))
        if file.read() != bytes(1024):
            raise DataError(f"{shard} is not a complete tar: its end mark is missing; get the file again")


def read_images(shard: str, label: str, most: int, account: Accounting) -> Iterator[Member | BadImage]:
    """The image files of a shard, of at most ``most`` bytes each, then the shard's damage if there is any.

    Members of one sample are consecutive and share their name up to the first dot, as in webdataset. The
    image of a sample is the member with nothing but an ending after this dot. Without one, the dots belong to
    the names: every image member is used. What is left out goes into ``account``.
    """
    damage: list[BadImage] = []
    seen = set[int]()
    images = _images(shard, label, most, account, damage)
    for _, group in groupby(images, lambda image: image.path[: -len(_suffix(image.path))]):
        members = list(group)
        plain = [image for image in members if "." not in _suffix(image.path)]
        for image in members:
            if plain and image is not plain[0]:
                account.leave_out("beside the image of their sample", image.path, picture=True)
                continue
            path, key = image.path, image.key
            while key in seen:  # a tar may repeat a name
                key = name_key(path := f"{path} {key}")
            seen.add(key)
            account.used += 1
            yield image._replace(key=key)
    for bad in damage:
        account.used += 1  # as for every item: the loader subtracts the bad ones
        yield bad


def _images(
    shard: str, label: str, most: int, account: Accounting, damage: list[BadImage]
) -> Iterator[Member]:
    """The image members of a shard, up to its damage."""
    try:
        # A file may hold several tars, one after the other.
        reading: Any = {"mode": "r|*", "tarinfo": _StrictInfo, "ignore_zeros": True}
        with open_regular(shard) as file, tarfile.open(fileobj=file, **reading) as tar:
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # else a shard's headers stay in memory
                name = posixpath.normpath(info.name)
                path = f"{label}/{name}"
                content = tar.extractfile(info) if info.isreg() else None
                if content is None:
                    if not info.isdir():
                        picture = info.islnk() and _suffix(name).rpartition(".")[2] in EXTENSIONS
                        account.leave_out("that are links or no files", path, picture=picture)
                elif account.is_image(path, partial(content.read, 16)):
                    if info.issparse() or info.size > most:
                        raise tarfile.ReadError(f"{info.name!r} declares {info.size} bytes")
                    yield Member(name_key(path), path, f"{shard}, {name!r}", content.read())
    except Exception as err:  # tarfile raises ValueError, IndexError, ... on hostile headers
        reason = getattr(err, "strerror", None) or str(err)
        damage.append(BadImage(shard, f"truncated or damaged shard ({reason})"))


def _suffix(name: str) -> str:
    """What follows the first dot of a member's base name, in lower case."""
    return name.rpartition("/")[2].partition(".")[2].lower()


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
        zeros, tar.zeros = getattr(tar, "zeros", 0), 0  # type: ignore[attr-defined]
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tar.zeros = zeros + 1  # type: ignore[attr-defined]
            if tar.zeros > _MOST_ZEROS:  # type: ignore[attr-defined]
                raise tarfile.ReadError(f"{_MOST_ZEROS // 2048} MiB of zeros") from None
            raise  # the proper end of a tar: a block of zeros
        except tarfile.HeaderError as err:
            if zeros and isinstance(err, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
                raise  # the end of the file
            raise tarfile.ReadError(f"{err}" if tar.offset else f"not a tar file ({err})") from err
