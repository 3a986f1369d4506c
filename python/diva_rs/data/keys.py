"""Sample keys: which random streams belong to a sample, from its id."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import diva_rs._native as _native
from diva_rs._base.kinds import is_dense
from diva_rs.errors import DataError, shown


def augment_seed(seed: int, sample: Any, epoch: int = 0) -> int:
    """A 63-bit seed for the image augmentation of one sample in one epoch; ``sample`` is its id.

    >>> generator = torch.Generator().manual_seed(augment_seed(0, "a.png"))
    """
    return _native.augment_seed(seed, int(sample_keys([sample])[0]), epoch)


def sample_keys(ids: Iterable[Any]) -> npt.NDArray[np.uint64]:
    """Sample ids as the 64-bit keys of their streams, (B,) uint64.

    Whole numbers (Python, NumPy, tensors) from 0 to 2**64 - 1 are taken as they are; strings are hashed
    (BLAKE2b with 8 bytes, little-endian, over UTF-8). Raises DataError naming the index of an id that is
    negative, too large or of another type.

    >>> sample_keys([3, 4])
    array([3, 4], dtype=uint64)
    >>> int(sample_keys(["cat.png"])[0])
    5701195407040762926
    """
    if isinstance(ids, torch.Tensor):
        if not is_dense(ids):
            raise DataError("ids: an ordinary tensor of one whole number per sample, (B,), is needed")
        if ids.is_meta:
            raise DataError(
                "ids: a tensor on the meta device holds no numbers; give the ids as numbers or strings"
            )
        ids = ids.detach().cpu().numpy()
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1:
            raise DataError(f"ids: an array of shape {ids.shape}, expected one id per sample, (B,)")
        if ids.dtype == np.uint64:
            return np.ascontiguousarray(ids, dtype=np.uint64)
        ids = ids.tolist()
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise DataError(
            f"ids: {shown(ids)} is a single value, expected one id per sample, such as [{shown(ids)}]"
        )
    return np.array([_key(index, value) for index, value in enumerate(ids)], dtype=np.uint64)


def _key(index: int, value: Any) -> int:
    if isinstance(value, str):
        # File names may hold bytes that are no UTF-8; Python keeps those as lone surrogates.
        digest = hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "little")
    if isinstance(value, torch.Tensor) and value.ndim == 0 and not value.is_meta:
        value = value.item()
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        if 0 <= value < 2**64:
            return int(value)
        raise DataError(f"ids[{index}] is {shown(value)}, expected 0 to 2**64 - 1")
    raise DataError(
        f"ids[{index}] is {shown(value)} ({type(value).__name__}), expected a whole number or a string for "
        "each sample"
    )
