"""The files of a latent cache, checked when they are opened and when they are read.

``latents-00000.safetensors``, ...  ``latents`` (n, C, h, w): the rows, in the order they were added
``index.safetensors``               ``content`` (N, 16), the hash of each row's image, and ``check`` (N,)
``facts.json``                      what made the latents
``manifest.json``                   size and SHA-256 of index and facts
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from diva_rs._base.checkpoint import MANIFEST, load_weights, save_weights, verify, write_manifest
from diva_rs._base.files import check_replaceable, names_in, write_json
from diva_rs._base.optional import one_line
from diva_rs.data.accounting import Accounting
from diva_rs.data.augment import Views
from diva_rs.errors import DataError, ShapeError, WeightsError

Array = np.ndarray[Any, Any]

_INDEX, _FACTS, _LATENTS = "index.safetensors", "facts.json", "latents-{:05}.safetensors"
_FILE_BYTES = 1 << 27  # of latents in a file


class Facts(BaseModel, extra="forbid"):
    """The content of ``facts.json``."""

    format: Literal["diva-rs latents 2"] = "diva-rs latents 2"
    describe: str  # the teacher's description
    teacher: dict[str, Any]  # the VAE: configuration, and a fingerprint of its encoder's weights
    view: dict[str, Any]  # how images became the VAE's input
    views: Views | None
    accounting: Accounting | None = None


def content_hash(pixels: Array) -> bytes:
    """128 bits of BLAKE2b of an image's values and shape."""
    state = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
    state.update(np.ascontiguousarray(pixels, "<f4").data)
    return state.digest()


def identity(teacher: Any) -> dict[str, Any]:
    """The VAE's configuration and a fingerprint of its encoder's weights.

    Weights are rounded to bf16 first, so that a cache made in float32 serves a run in bf16. An object without
    ``vae`` is identified by ``describe()``.
    """
    if not hasattr(teacher, "vae"):
        return {"config": {}, "weights": _hash(str(teacher.describe()).encode())}
    if teacher.vae is None:
        return {"config": {}, "weights": "none: works on pixels"}
    config = {key: value for key, value in dict(teacher.vae.config).items() if not key.startswith("_")}
    encoder = hash_of_weights(teacher.vae, without=("decoder.", "post_quant_conv."))
    return {"config": json.loads(json.dumps(config, default=str)), "weights": encoder}


def hash_of_weights(module: nn.Module, without: tuple[str, ...] = ()) -> str:
    """A hash of a module's weights, rounded to bf16; ``without`` are the beginnings of names left out."""
    parts = []
    for name, weight in sorted(module.state_dict().items()):
        if not name.startswith(without):
            rounded = weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16)
            parts.append(f"{name} {tuple(weight.shape)} {_hash(rounded.numpy().tobytes())}".encode())
    return _hash(b"\n".join(parts))


class StoreWriter:
    """Writes the files of a store into an empty folder."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.folder, self.dtype = folder, dtype
        self.shape: tuple[int, ...] | None = None
        self._checks: dict[bytes, int] = {}  # content -> checksum, in the order of the rows
        self._rows: list[Tensor] = []  # of the file that is not yet written
        self._files = 0

    def __contains__(self, content: bytes) -> bool:
        return content in self._checks

    def add(self, content: bytes, latent: Tensor, where: str) -> None:
        """Append one latent (C, h, w) of the image with this content hash; ``where`` it was, for errors."""
        row, shape = latent.to(self.dtype), tuple(latent.shape)
        self.shape = self.shape or shape
        if shape != self.shape:
            raise ShapeError(f"{where}: the latent is {shape}, those before {self.shape}")
        if not row.isfinite().all():
            raise DataError(f"{where}: a latent exceeds {self.dtype}: use dtype='float32'")
        self._checks[content] = _checksum(row)
        self._rows.append(row)
        if len(self._rows) * row.nbytes >= _FILE_BYTES:
            self._flush()

    def finish(self, facts: Facts) -> None:
        """Write the last latents, the index, the facts and the manifest."""
        if self._rows:
            self._flush()
        content = torch.frombuffer(bytearray(b"".join(self._checks)), dtype=torch.uint8).reshape(-1, 16)
        check = torch.tensor(list(self._checks.values()), dtype=torch.int64, device="cpu")
        save_weights(self.folder / _INDEX, {"content": content, "check": check})
        write_json(self.folder / _FACTS, facts.model_dump(mode="json"))
        write_manifest(self.folder, (_INDEX, _FACTS))

    def _flush(self) -> None:
        save_weights(self.folder / _LATENTS.format(self._files), {"latents": torch.stack(self._rows)})
        self._files, self._rows = self._files + 1, []


class Store:
    """A complete store, opened for reading. Raises DataError if it is missing, incomplete or damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise DataError(
                f"latent cache {folder} does not exist: LatentCache.build or diva-rs cache makes it"
            )
        try:
            verify(folder, (_INDEX, _FACTS))
            self.facts = Facts.model_validate_json((folder / _FACTS).read_bytes())
            self._open()
        except ValidationError as err:
            raise self._unusable(f"{_FACTS}: {one_line(err)}") from err
        except (WeightsError, OSError) as err:
            raise self._unusable(str(err)) from err

    def __len__(self) -> int:
        return len(self._order)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (C, h, w) of each latent."""
        return tuple(self._files[0].shape[1:])

    def rows(self, contents: list[bytes]) -> Array:
        """The row of each content hash, -1 where there is none: (n,) int64."""
        wanted = np.array(contents, "S16")
        places = np.searchsorted(self._sorted, wanted).clip(max=len(self) - 1)
        return np.where(self._sorted[places] == wanted, self._order[places], -1)

    def read(self, rows: Array) -> Tensor:
        """The latents of rows, (n, C, h, w) float32. The first time that this process reads one, it is
        compared with its checksum.
        """
        found = []
        for row in rows.tolist():
            file, place = divmod(row, len(self._files[0]))
            latent = self._files[file][place]
            if not self._intact[row]:
                if _checksum(latent) != self._checks[row]:
                    raise self._unusable(
                        f"row {row}, in {_LATENTS.format(file)}, does not match its checksum"
                    )
                self._intact[row] = True
            found.append(latent)
        return torch.stack(found).float()

    def _open(self) -> None:
        """Read the index, and map the latents into memory without reading them."""
        index = load_weights(self.folder / _INDEX)
        count = len(index.get("check", ()))
        shapes = {name: (tuple(part.shape), part.dtype) for name, part in index.items()}
        if not count or shapes != {"content": ((count, 16), torch.uint8), "check": ((count,), torch.int64)}:
            raise WeightsError(f"{_INDEX} holds {shapes}")
        contents = index["content"].numpy().view("S16").ravel()
        self._order = np.argsort(contents)
        self._sorted, self._checks = contents[self._order], index["check"].tolist()
        self._intact = bytearray(count)  # the rows whose checksums were compared
        self._files: list[Tensor] = []  # of equally many rows, except the last
        while count > 0:
            name = _LATENTS.format(len(self._files))
            latents = load_weights(self.folder / name).get("latents", torch.empty(0, device="cpu"))
            first = self._files[0] if self._files else latents
            shape = (min(len(first), count), *first.shape[1:])
            fits = latents.ndim == 4 and latents.shape == shape and latents.dtype == first.dtype
            if not fits or not latents.numel() or not latents.is_floating_point():
                raise WeightsError(f"{name} holds {latents.dtype} {tuple(latents.shape)}, {shape} expected")
            self._files.append(latents)
            count -= len(latents)

    def _unusable(self, why: str) -> DataError:
        return DataError(
            f"latent cache {self.folder} cannot be used: {why}: build it again with overwrite=True"
        )


def check_place(folder: Path, overwrite: bool) -> None:
    """Raise DataError if a new store may not replace what is at ``folder``."""
    check_replaceable(folder, (_INDEX, _FACTS, MANIFEST, "latents-?????.safetensors"), "a latent cache")
    if names_in(folder) and not overwrite:
        raise DataError(f"{folder} holds a latent cache already: open it, or replace it with overwrite=True")


def _checksum(row: Tensor) -> int:
    values = row.contiguous().numpy().reshape(-1).view(np.uint8)
    digest = hashlib.blake2b(values.data, digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
