"""Decoding of image files to RGB pictures. Every failure is a DataError that names the file."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from diva_rs._base.files import open_regular
from diva_rs._base.optional import require
from diva_rs.errors import ConfigError, DataError, DivaError, shown

EXTENSIONS = frozenset(
    ["jpg", "jpeg", "jfif", "jpe", "png", "webp", "bmp", "gif", "ppm", "pgm", "tif", "tiff", "avif"]
)
# Only these: Pillow goes by the first bytes, not by the name, and hands PostScript to Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF", "AVIF")
# Twice PIL's own warning threshold, where PIL itself raises: 179 million pixels are 0.5 GB of RGB.
MAX_PIXELS = 178_956_970


@dataclass(frozen=True)
class BadImage:
    """Stands in a batch for an image that could not be read; ``collate`` removes it.

    >>> str(BadImage("cats/3.jpg", "truncated"))
    'cats/3.jpg (truncated)'
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"

    def error(self) -> DataError:
        return DataError(f"{self.name}: {self.reason}; repair or remove it, or pass on_bad_image='skip'")


def check_policy(on_bad_image: str) -> None:
    """Raise ConfigError unless ``on_bad_image`` is "raise" or "skip"."""
    if on_bad_image not in ("raise", "skip"):
        raise ConfigError(f"on_bad_image={shown(on_bad_image)} is unknown: one of 'raise', 'skip'")


def decode(source: bytes | str | os.PathLike[str], name: str, max_pixels: int = MAX_PIXELS) -> Any:
    """An RGB ``PIL.Image`` from a file or from its bytes, turned upright by its EXIF orientation.

    Raises DataError, with ``name``, for a missing, truncated, corrupt or unknown file, and, before anything
    is decompressed, for one of more than ``max_pixels`` pixels.

    >>> decode(b"not an image", "x.jpg")
    Traceback (most recent call last):
    diva_rs.errors.DataError: x.jpg: not an image that Pillow can read
    """
    ops = require("PIL.ImageOps", extra="data")
    with opened(source, name, max_pixels) as image:
        image.load()
        return _rgb(ops.exif_transpose(image))


@contextmanager
def opened(source: bytes | str | os.PathLike[str], name: str, max_pixels: int = MAX_PIXELS) -> Iterator[Any]:
    """The picture as Pillow opens it, not yet decoded; an error in the block becomes a DataError."""
    pil = require("PIL.Image", extra="data")
    files: Any = require("PIL.ImageFile", extra="data")
    lenient = files.LOAD_TRUNCATED_IMAGES
    try:
        # Other libraries switch this on for the whole process; half an image would then train as grey.
        files.LOAD_TRUNCATED_IMAGES = False
        pil.init()
        formats = [known for known in _FORMATS if known in pil.OPEN]  # that this Pillow was built with
        with (
            io.BytesIO(source) if isinstance(source, bytes) else open_regular(source) as file,
            pil.open(file, formats=formats) as image,
        ):
            width, height = image.size
            if width * height > max_pixels:
                raise DataError(f"{name}: {width} x {height} pixels are more than the {max_pixels} allowed")
            yield image
    except DivaError:
        raise
    except pil.UnidentifiedImageError as err:
        raise DataError(f"{name}: not an image that Pillow can read") from err
    except OSError as err:
        reason = str(err.strerror or err)
        raise DataError(f"{name}: {'truncated image' if 'truncated' in reason.lower() else reason}") from err
    except MemoryError as err:
        raise DataError(f"{name}: decoding it takes more memory than there is") from err
    except Exception as err:  # Pillow's decoders raise SyntaxError, struct.error, ... on hostile files
        raise DataError(f"{name}: corrupt image ({type(err).__name__}: {err})") from err
    finally:
        files.LOAD_TRUNCATED_IMAGES = lenient


def _rgb(image: Any) -> Any:
    if image.mode.startswith("I;16"):
        # Pillow clips 16-bit grey at 255 instead of scaling it.
        image = image.point(lambda v: v * (1 / 256)).convert("L")
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode} has no fixed range; save it as 8 or 16 bits per channel")
    return image.convert("RGB")
