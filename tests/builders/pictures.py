"""Small pictures of noise, as files and as tar shards."""

import io
import tarfile

import numpy as np
from PIL import Image


def picture(seed=0, size=(40, 32)):
    """An RGB image of noise; ``size`` is (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(seed=0, size=(40, 32), kind="jpeg"):
    """The bytes of an image file."""
    blob = io.BytesIO()
    picture(seed, size).save(blob, kind)
    return blob.getvalue()


def write_tar(path, members, mode="w"):
    """A tar file of (name, bytes) pairs; None in place of the bytes makes a folder."""
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.type = tarfile.REGTYPE if data is not None else tarfile.DIRTYPE
            info.size = len(data or b"")
            tar.addfile(info, io.BytesIO(data or b""))
    return path
