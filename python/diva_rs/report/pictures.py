"""The section of the caller's own pictures."""

import base64
import os
from collections.abc import Mapping
from pathlib import Path

from diva_rs._base.arguments import as_path
from diva_rs._base.files import read_bytes
from diva_rs.errors import ConfigError, DataError, shown
from diva_rs.report.blocks import Image, Section

Pictures = Mapping[str, str | os.PathLike[str]]  # caption -> PNG file

_MOST = 1 << 24  # bytes: the page holds it whole
_PNG = b"\x89PNG\r\n\x1a\n"


def pictures_sections(pictures: Pictures) -> list[Section]:
    """A section with every picture, or none where there is no picture.

    Raises:
        ConfigError: something else than a mapping of captions to files.
        DataError: a file cannot be read, or is no PNG.

    >>> pictures_sections({})
    []
    """
    if not isinstance(pictures, Mapping) or not all(isinstance(caption, str) for caption in pictures):
        raise ConfigError(f"pictures is {shown(pictures)}: give a dict, {{caption: PNG file}}")
    images = tuple(Image(_uri(as_path(path)), caption) for caption, path in pictures.items())
    return [Section("Pictures", "pictures", images)] if images else []


def _uri(path: Path) -> str:
    try:
        content = read_bytes(path, _MOST)
    except OSError as err:
        raise DataError(f"{path} cannot be read: {err.strerror}") from err
    if not content.startswith(_PNG):
        raise DataError(f"{path} is no PNG image")
    return "data:image/png;base64," + base64.b64encode(content).decode()
