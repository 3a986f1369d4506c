"""Small copies of images, as data URIs for the page."""

import base64
import io
from pathlib import Path

from diva_rs.data.decode import decode
from diva_rs.errors import DataError


def thumbnail(path: str, root: str = "", side: int = 224) -> str | None:
    """A JPEG of at most ``side`` pixels a side, as a data URI; None where the file is no readable image.

    ``path`` is looked for where it says, and then in ``root``.

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
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
