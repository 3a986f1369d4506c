"""Images as data URIs for the page."""

import base64
import io
import os
from collections.abc import Mapping
from pathlib import Path

from diva_rs._base.files import read_bytes
from diva_rs.data.decode import decode, opened
from diva_rs.errors import DataError

Pictures = Mapping[str, str | os.PathLike[str]]  # caption -> image file

_MOST_BYTES = 1 << 24  # of a picture: the page holds it whole
_SHOWN = ("PNG", "JPEG", "GIF", "WEBP")  # formats that every browser shows


def picture(path: str | os.PathLike[str]) -> str:
    """An image file as a data URI, unchanged. Raises DataError if it is damaged or too large."""
    file = Path(path)
    try:
        content = read_bytes(file, _MOST_BYTES)
    except OSError as err:
        raise DataError(f"{file} cannot be read: {err.strerror}") from err
    with opened(content, str(file)) as image:
        image.load()
        if image.format not in _SHOWN:
            raise DataError(f"{file} is a {image.format} image: give a PNG, JPEG, GIF or WebP image")
        kind = image.get_format_mimetype()
    return _uri(kind, content)


def thumbnail(path: str, root: str = "", side: int = 224) -> str | None:
    """A JPEG of at most ``side`` pixels a side as a data URI; None if the file is not a readable image.

    ``path`` is as given or below ``root``.

    >>> thumbnail("nowhere.jpg") is None
    True
    """
    try:
        small = decode(path if Path(path).exists() else Path(root, path), path)
    except (DataError, OSError, ValueError):  # a name that no file can have is a ValueError
        return None
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=82)
    return _uri("image/jpeg", buffer.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
