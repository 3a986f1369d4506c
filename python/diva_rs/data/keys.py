"""Keys of samples, from their ids or file names: for random streams and for the order of an epoch."""

import hashlib
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import diva_rs._native as _native
from diva_rs._base.tensors import described, is_dense
from diva_rs.errors import DataError, shown


def augment_seed(seed: int, sample: Any, epoch: int = 0) -> int:
    """A 63-bit seed for the image augmentation of one sample in one epoch; ``sample`` is its id.

    >>> generator = torch.Generator().manual_seed(augment_seed(0, "a.png"))
    """
    return _native.augment_seed(seed, int(sample_keys([sample])[0]), epoch)


def sample_keys(ids: Iterable[Any]) -> npt.NDArray[np.uint64]:
    """Sample ids as the 64-bit keys of their streams, (B,) uint64.

    Integers (Python, NumPy, tensors) from 0 to 2**64 - 1 are used as they are; strings are hashed (BLAKE2b
    with 8 bytes, little-endian, over UTF-8). Raises DataError naming the index of an id that is negative, too
    large or of another type.

    >>> sample_keys([3, 4])
    array([3, 4], dtype=uint64)
    >>> int(sample_keys(["cat.png"])[0])
    5701195407040762926
    """
    if isinstance(ids, torch.Tensor):
        if not is_dense(ids) or ids.is_meta:
            raise DataError(f"ids: {described(ids)} on {ids.device}, a dense tensor of values is needed")
        ids = ids.detach().cpu().numpy()
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1:
            raise DataError(f"ids: an array of shape {ids.shape}, expected one id per sample, (B,)")
        if ids.dtype == np.uint64:
            return np.ascontiguousarray(ids, dtype=np.uint64)
        ids = ids.tolist()
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        one = shown(ids)
        raise DataError(f"ids: {one} is a single value, expected one id per sample, such as [{one}]")
    return np.array([_key(index, value) for index, value in enumerate(ids)], dtype=np.uint64)


def name_key(name: str) -> int:
    """The sample id of a file name: 63 bits of its BLAKE2b hash, the same on every machine."""
    return _hash(name.encode("utf-8", "surrogateescape")) >> 1


def crop_seed(seed: int, sample: int, epoch: int, purpose: bytes = b"augment") -> int:
    """A 63-bit seed for torch's generator, of (seed, sample id, epoch) and 8 bytes of what it is for."""
    return _hash(struct.pack("<QQQ8s", seed % 2**64, sample % 2**64, epoch % 2**64, purpose)) >> 1


def scramble(ids: np.ndarray[Any, Any], seed: int, epoch: int) -> np.ndarray[Any, Any]:
    """A uint64 hash of (seed, epoch, id) for each id: SplitMix64's finaliser (Steele et al., 2014)."""
    packed = struct.pack("<QQ8s", seed % 2**64, epoch % 2**64, b"shuffle\0")
    key = np.frombuffer(hashlib.blake2b(packed, digest_size=16).digest(), "<u8")
    z = (ids.astype(np.uint64) ^ key[0]) * np.uint64(0x9E3779B97F4A7C15) + key[1]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))  # type: ignore[no-any-return]


def _key(index: int, value: Any) -> int:
    if isinstance(value, str):
        # File names may hold bytes that are no UTF-8; Python keeps those as lone surrogates.
        return _hash(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, torch.Tensor) and value.ndim == 0 and not value.is_meta:
        value = value.item()
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        if 0 <= value < 2**64:
            return int(value)
        raise DataError(f"ids[{index}] is {shown(value)}, expected 0 to 2**64 - 1")
    what = f"{shown(value)} ({type(value).__name__})"
    raise DataError(f"ids[{index}] is {what}, expected an integer or a string for each sample")


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
