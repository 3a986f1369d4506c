"""The files of a latent cache, checked when opened and when read.

``latents-00000.safetensors``, ...  ``latents`` (n, C, h, w): the rows, in the order they were added
``index.safetensors``               for each row: ``content`` (N, 16), the hash of its image; ``id`` and
                                    ``check`` (N,), the image's id and the checksum of the row
``facts.json``                      shape, dtype, and what made the latents
``manifest.json``                   size and SHA-256 of index and facts
"""

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from diva_rs._base.checkpoint import load_weights, save_weights, verify, write_manifest
from diva_rs._base.files import write_json
from diva_rs._base.optional import one_line
from diva_rs.data.augment import Views
from diva_rs.errors import DataError, WeightsError

Array = np.ndarray[Any, Any]

_INDEX, _FACTS = "index.safetensors", "facts.json"
_SHARD = 1 << 27  # bytes of latents in a file


class TeacherFacts(BaseModel, extra="forbid"):
    """The VAE that made the latents; see `latent_cache.identity`."""

    describe: str
    config: dict[str, Any]
    weights: str


class ViewFacts(BaseModel, extra="forbid"):
    """How images became the VAE's input. A field that had no influence is None."""

    source: str
    pixels: str
    vae_pixels: str
    image_size: tuple[int, int]
    resampled: bool
    resize: str | None = None
    antialias: bool | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class Facts(BaseModel, extra="forbid", strict=True):
    """The content of ``facts.json``."""

    format: Literal["diva-rs latents 2"] = "diva-rs latents 2"
    count: int = Field(gt=0)
    shape: tuple[int, int, int]
    dtype: Literal["float32", "float16"]
    per_shard: int = Field(gt=0)
    teacher: TeacherFacts
    view: ViewFacts
    views: Views | None = None


def content_hash(pixels: Array) -> bytes:
    """128 bits of BLAKE2b of an image's values and shape.

    >>> content_hash(np.zeros((3, 2, 2), np.float32)) == content_hash(np.zeros((3, 2, 2), np.float32))
    True
    """
    state = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
    state.update(np.ascontiguousarray(pixels, "<f4").data)
    return state.digest()


class StoreWriter:
    """Writes the files of a store into an empty folder."""

    def __init__(self, folder: Path, dtype: Literal["float32", "float16"]) -> None:
        self.folder, self.dtype = folder, dtype
        self.shape: tuple[int, int, int] | None = None
        self._index: dict[bytes, tuple[int, int]] = {}  # content -> id and checksum, in the order of the rows
        self._rows: list[Tensor] = []  # of the file that is not yet written
        self._files = 0
        self._per_shard = 0

    def __contains__(self, content: bytes) -> bool:
        return content in self._index

    def add(self, content: bytes, sample: int, latent: Array) -> None:
        """Append one latent (C, h, w); ``sample`` is the id of its image."""
        row = torch.from_numpy(np.ascontiguousarray(latent, self.dtype))
        if self.shape is None:
            channels, height, width = latent.shape
            self.shape = (channels, height, width)
            self._per_shard = max(1, _SHARD // (row.numel() * row.element_size()))
        self._index[content] = (sample, _check(row))
        self._rows.append(row)
        if len(self._rows) == self._per_shard:
            self._flush()

    def finish(self, teacher: TeacherFacts, view: ViewFacts, views: Views | None) -> None:
        """Write the last latents, the index and the manifest."""
        if self._rows:
            self._flush()
        numbers = np.array(list(self._index.values()), np.uint64).view(np.int64)
        contents = np.frombuffer(b"".join(self._index), np.uint8).reshape(-1, 16)
        index = {"content": contents.copy(), "id": numbers[:, 0], "check": numbers[:, 1]}
        save_weights(self.folder / _INDEX, {name: torch.from_numpy(part) for name, part in index.items()})
        assert self.shape is not None  # known since the first latent
        facts = Facts(
            count=len(self._index),
            shape=self.shape,
            dtype=self.dtype,
            per_shard=self._per_shard,
            teacher=teacher,
            view=view,
            views=views,
        )
        write_json(self.folder / _FACTS, facts.model_dump(mode="json"))
        write_manifest(self.folder, (_INDEX, _FACTS))

    def _flush(self) -> None:
        save_weights(self.folder / _shard_name(self._files), {"latents": torch.stack(self._rows)})
        self._files, self._rows = self._files + 1, []


class Store:
    """A complete store, opened for reading. Raises DataError if it is missing, incomplete or damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise DataError(
                f"latent cache {folder} does not exist: create it with LatentCache.build or diva-rs cache"
            )
        try:
            verify(folder, (_INDEX, _FACTS))
            self.facts = Facts.model_validate_json((folder / _FACTS).read_bytes())
            self._read_index()
            # Memory-mapped: opening the files reads no latent.
            shards = range(0, self.facts.count, self.facts.per_shard)
            self._shards = [self._shard(number, start) for number, start in enumerate(shards)]
        except ValidationError as err:
            raise self._damaged(f"{_FACTS}: {one_line(err)}") from err
        except (WeightsError, OSError) as err:
            raise self._damaged(str(err)) from err

    def __len__(self) -> int:
        return self.facts.count

    def rows(self, contents: list[bytes]) -> Array:
        """The row of each content hash, -1 where there is none: (n,) int64."""
        wanted = np.array(contents, "S16")
        places = np.searchsorted(self._sorted, wanted).clip(max=len(self) - 1)
        return np.where(self._sorted[places] == wanted, self._order[places], -1)

    def read(self, rows: Array) -> Tensor:
        """The latents of rows, (n, C, h, w) float32, each compared with its checksum."""
        found = []
        for row in rows.tolist():
            shard, place = divmod(row, self.facts.per_shard)
            latent = self._shards[shard][place]
            if _check(latent) != int(self._checks[row]):
                raise self._damaged(f"{_shard_name(shard)}, row {place}, does not match its checksum")
            found.append(latent)
        return torch.stack(found).float()

    def _read_index(self) -> None:
        index, count = load_weights(self.folder / _INDEX), self.facts.count
        shapes = {name: (tuple(part.shape), part.dtype) for name, part in index.items()}
        wide, numbers = ((count, 16), torch.uint8), ((count,), torch.int64)
        if shapes != {"content": wide, "id": numbers, "check": numbers}:
            raise WeightsError(f"{_INDEX} does not hold {count} rows")
        contents = index["content"].numpy().view("S16").ravel()
        self._order = np.argsort(contents)
        self._sorted = contents[self._order]
        self._checks = index["check"].numpy().view(np.uint64)
        self.ids = index["id"].numpy().view(np.uint64)

    def _shard(self, number: int, start: int) -> Tensor:
        facts, name = self.facts, _shard_name(number)
        latents = load_weights(self.folder / name).get("latents")
        shape = (min(facts.per_shard, facts.count - start), *facts.shape)
        if latents is None or latents.shape != shape or latents.dtype != getattr(torch, facts.dtype):
            raise WeightsError(f"{name} does not hold {shape[0]} latents {facts.shape} of {facts.dtype}")
        return latents

    def _damaged(self, what: str) -> DataError:
        return DataError(
            f"latent cache {self.folder} cannot be used: {what}; build it again with overwrite=True"
        )


def holds_store(folder: Path) -> bool:
    """Whether a folder holds parts of a store and nothing else, so that it may be replaced."""
    names = [path.name for path in folder.iterdir()]
    known = (_INDEX, _FACTS, "manifest.json")
    return bool(names) and all(name in known or _is_shard(name) for name in names)


def _shard_name(number: int) -> str:
    return f"latents-{number:05}.safetensors"


def _is_shard(name: str) -> bool:
    number = name.removeprefix("latents-").removesuffix(".safetensors")
    return number.isdecimal() and name == _shard_name(int(number))


def _check(row: Tensor) -> int:
    return int.from_bytes(hashlib.blake2b(row.numpy().tobytes(), digest_size=8).digest(), "little")
