"""Small copies of images, as data URIs for the page."""

import base64
import io
import warnings
from pathlib import Path

from diva_rs._optional import require


def thumbnail(path: str, root: str = "", side: int = 224) -> str | None:
    """A JPEG of at most ``side`` pixels a side, as a data URI; None where the file is no readable image.

    ``path`` is looked for where it says, and then in ``root``.

    >>> thumbnail("nowhere.jpg") is None
    True
    """
    library = require("PIL.Image", extra="data")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", library.DecompressionBombWarning)
            file = Path(path) if Path(path).exists() else Path(root, path)
            with library.open(file) as opened:
                opened.draft("RGB", (2 * side, 2 * side))
                small = opened.convert("RGB")
        small.thumbnail((side, side))
    except (
        OSError,
        ValueError,
        SyntaxError,
        library.DecompressionBombError,
        library.DecompressionBombWarning,
    ):
        return None
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
