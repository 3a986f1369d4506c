"""Decoding of image files to RGB pictures. Every failure is a DataError that names the file."""

import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from diva_rs._base.files import LFS, open_regular
from diva_rs._base.optional import require
from diva_rs.data.metadata import bare, upright
from diva_rs.errors import ConfigError, DataError, DivaError, shown

EXTENSIONS = frozenset(
    ["jpg", "jpeg", "jfif", "jpe", "png", "webp", "bmp", "gif", "ppm", "pgm", "tif", "tiff", "avif"]
)
# Only these: Pillow goes by the first bytes, not by the name, and hands PostScript to Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF", "AVIF")
# Twice PIL's own warning threshold, where PIL itself raises: 179 million pixels are 0.5 GB of RGB.
MAX_PIXELS = 178_956_970

_JPEG, _ORIENTATION = b"\xff\xd8\xff", 0x0112

_lock = Lock()
_users, _lenient = 0, False  # threads in `_strict`, and Pillow's setting outside


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
    is decompressed, for one of more than ``max_pixels`` pixels. Damaged metadata is ignored.

    >>> decode(b"not an image", "x.jpg")
    Traceback (most recent call last):
    diva_rs.errors.DataError: x.jpg: not an image that Pillow can read
    """
    image = load(source, name, max_pixels)
    with _errors(name):
        return _rgb(upright(image))


def decode_pixels(source: bytes | str | os.PathLike[str], name: str, max_pixels: int = MAX_PIXELS) -> Tensor:
    """As `decode`, but the bytes of the picture, (3, H, W) uint8. torchvision decodes ordinary JPEG files, to
    the bits that Pillow gives.
    """
    with _errors(name), _opened(source) as file:
        ordinary = file.read(len(_JPEG)) == _JPEG and file.seek(0, os.SEEK_END) <= 3 * max_pixels
        file.seek(0)
        found = _ordinary_jpeg(file.read(), max_pixels) if ordinary else None
    if found is None:
        found = torch.from_numpy(np.array(decode(source, name, max_pixels))).permute(2, 0, 1)
    return found


def _ordinary_jpeg(data: bytes, max_pixels: int) -> Tensor | None:
    """The pixels of a JPEG file in colour that stands upright; None for any other file, or a damaged one."""
    pil, library = (require(module, extra="data") for module in ("PIL.Image", "torchvision.io"))
    pil.init()
    with suppress(Exception):
        image = pil.OPEN["JPEG"][0](io.BytesIO(data), "")
        upright = image.getexif().get(_ORIENTATION, 1) == 1
        if image.mode == "RGB" and upright and image.width * image.height <= max_pixels:
            pixels = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            return library.decode_jpeg(pixels, library.ImageReadMode.RGB)  # type: ignore[no-any-return]
    return None


def load(source: bytes | str | os.PathLike[str], name: str, max_pixels: int = MAX_PIXELS) -> Any:
    """As `decode`, in the mode and the orientation of the file."""
    pil = require("PIL.Image", extra="data")
    with _errors(name), _strict(), _opened(source) as file:
        try:
            return _loaded(file, name, max_pixels)
        except (DivaError, MemoryError, pil.DecompressionBombError):
            raise
        except Exception:
            plain = bare(file, 4 * max_pixels)  # the bytes of the largest picture, uncompressed
            with suppress(Exception):
                return _loaded(io.BytesIO(plain or b""), name, max_pixels)
            raise


def _opened(source: bytes | str | os.PathLike[str]) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open_regular(source)


def _loaded(file: BinaryIO, name: str, max_pixels: int) -> Any:
    """The first picture in a file. Unlike ``PIL.Image.open`` this does not apply Pillow's limit of pixels."""
    pil = require("PIL.Image", extra="data")
    pil.init()
    start, failure = file.read(16), None
    for kind in _FORMATS:
        factory, accept = pil.OPEN.get(kind, (None, None))  # None: this Pillow was built without it
        # A plugin explains in words that it cannot read a file of its format.
        if factory is None or (accept is not None and accept(start) is not True):
            continue
        file.seek(0)
        try:
            image = factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error) as err:  # not of this format, or damaged
            failure = err
            continue
        width, height = image.size
        if width * height > max_pixels:
            size = f"{width} x {height} pixels are more than max_pixels={max_pixels}"
            raise DataError(f"{name}: {size}: scale it down, or give the loader a larger max_pixels")
        image.load()
        with suppress(Exception):
            image.getexif()  # some formats read it from the file
        return image
    if start and LFS.startswith(start):
        raise DataError(f"{name}: a pointer of Git LFS, not the image: run git lfs pull in its folder")
    raise pil.UnidentifiedImageError from failure


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """Any error in the block becomes a DataError that begins with ``name``."""
    pil = require("PIL.Image", extra="data")
    try:
        yield
    except DivaError:
        raise
    except pil.UnidentifiedImageError as err:
        raise DataError(f"{name}: not an image that Pillow can read") from err
    except pil.DecompressionBombError as err:
        raise DataError(f"{name}: {err} That limit is PIL.Image.MAX_IMAGE_PIXELS") from err
    except OSError as err:
        reason = str(err.strerror or err)
        raise DataError(f"{name}: {'truncated image' if 'truncated' in reason.lower() else reason}") from err
    except MemoryError as err:
        raise DataError(f"{name}: decoding it takes more memory than there is") from err
    except Exception as err:  # Pillow's decoders raise SyntaxError, struct.error, ... on hostile files
        raise DataError(f"{name}: corrupt image ({type(err).__name__}: {err})") from err


@contextmanager
def _strict() -> Iterator[None]:
    """Pillow's LOAD_TRUNCATED_IMAGES, which others switch on, is off while a thread is in this block: half
    an image would train as grey.
    """
    global _users, _lenient
    files: Any = require("PIL.ImageFile", extra="data")
    with _lock:
        if not _users:
            _lenient = files.LOAD_TRUNCATED_IMAGES
        _users += 1
        files.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                files.LOAD_TRUNCATED_IMAGES = _lenient


def _rgb(image: Any) -> Any:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        # Pillow clips 16-bit grey at 255 instead of scaling it. That of PGM files has mode I.
        image = image.convert("I").point(lambda v: v * (1 / 256)).convert("L")
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode} has no fixed range; save it as 8 or 16 bits per channel")
    return image.convert("RGB")
