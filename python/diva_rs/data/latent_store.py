"""The files of a latent cache: written beside and renamed when whole, checked when opened and when read.

``latents.npy``    (N, C, h, w), memory-mapped
``index.npy``      one record per row, sorted by the image's content hash, with a checksum of the row
``manifest.json``  shape, dtype, checksum of the index, what made the latents, and a checksum of itself
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from diva_rs._base.files import open_regular, read_text
from diva_rs.data.views import Views
from diva_rs.errors import ConfigError, DataError

Array = np.ndarray[Any, Any]

FILES = ("latents.npy", "index.npy", "manifest.json")
_FORMAT = "diva-rs latents 1"
_INDEX = np.dtype([("key", "<u8"), ("rest", "<u8"), ("row", "<i8"), ("id", "<u8"), ("check", "<u8")])


def content_hash(pixels: Array) -> tuple[int, int]:
    """128 bits of BLAKE2b of an image's values and shape, as two integers.

    >>> content_hash(np.zeros((3, 2, 2), np.float32)) == content_hash(np.zeros((3, 2, 2), np.float32))
    True
    """
    state = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
    state.update(np.ascontiguousarray(pixels, "<f4").data)
    digest = state.digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


class StoreWriter:
    """Writes a store into a hidden folder beside its place; `finish` moves it there, `abort` leaves
    nothing."""

    def __init__(self, folder: Path, dtype: str) -> None:
        self.folder, self.dtype = folder, np.dtype(dtype).newbyteorder("<")
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.building-", dir=folder.parent))
        self._file: IO[bytes] = open(self._beside / "latents.npy", "wb")  # noqa: SIM115  (closed by finish or abort)
        self._records: list[tuple[int, int, int, int, int]] = []
        self._seen: set[tuple[int, int]] = set()
        self.shape: tuple[int, ...] | None = None
        self._start = 0  # where the data begins, behind the header

    def __contains__(self, content: tuple[int, int]) -> bool:
        return content in self._seen

    def add(self, content: tuple[int, int], sample: int, latent: Array) -> None:
        """Append one latent (C, h, w); ``sample`` is the id of its image."""
        if self.shape is None:
            self.shape = latent.shape
            self._header(0)
        data = np.ascontiguousarray(latent, self.dtype).tobytes()
        self._file.write(data)
        self._records.append((*content, len(self._records), sample, _check(data)))
        self._seen.add(content)

    def finish(self, facts: dict[str, Any]) -> None:
        """Write index and manifest, sync everything, and move the store to its place, replacing an older
        store."""
        assert self.shape is not None
        self._header(len(self._records))
        _close_synced(self._file)
        index = np.array(self._records, _INDEX)
        index = index[np.lexsort((index["rest"], index["key"]))]
        with open(self._beside / "index.npy", "wb") as file:
            np.lib.format.write_array(file, index, allow_pickle=False)
            _close_synced(file)
        shape = [len(index), *self.shape]
        manifest = {
            "format": _FORMAT,
            "shape": shape,
            "dtype": self.dtype.name,
            "index": _file_hash(self._beside / "index.npy"),
        }
        manifest |= facts
        with open(self._beside / "manifest.json", "w", encoding="utf-8") as text:
            json.dump(manifest | {"checksum": _json_hash(manifest)}, text, indent=1, sort_keys=True)
            text.flush()
            os.fsync(text.fileno())
        _sync_folder(self._beside)
        os.chmod(self._beside, 0o777 & ~_umask())  # mkdtemp's 0700 would keep the cache from other users
        old = None
        if self.folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}.old-", dir=self.folder.parent))
            os.replace(self.folder, old)
        os.rename(self._beside, self.folder)
        _sync_folder(self.folder.parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)

    def abort(self) -> None:
        """Remove what was written."""
        self._file.close()
        shutil.rmtree(self._beside, ignore_errors=True)

    def _header(self, count: int) -> None:
        # NumPy pads the header so that the first axis can grow in place: the rewrite has the same length.
        self._file.seek(0)
        shape = (count, *(self.shape or ()))
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        if self._records and self._file.tell() != self._start:
            raise DataError(
                f"{self.folder}: {count} latents do not fit the header of their file; split the data set"
            )
        self._start = self._file.tell()


class Store:
    """A complete store, opened for reading. Raises DataError for one that is missing, incomplete or
    damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = self._manifest()
        shape = self.manifest["shape"]
        self.index = self._array("index.npy", shape[:1], _INDEX)
        if _file_hash(folder / "index.npy") != self.manifest["index"]:
            raise self._damaged("index.npy does not match its checksum")
        self.latents = self._array("latents.npy", shape, np.dtype(self.manifest["dtype"]).newbyteorder("<"))
        self._keys = np.ascontiguousarray(self.index["key"])
        rows = self.index["row"]
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(rows):
            raise self._damaged("index.npy names a row that is not there")

    def rows(self, contents: list[tuple[int, int]]) -> Array:
        """The row of each content hash, -1 where there is none: (n,) int64."""
        wanted = np.array(contents, np.uint64).reshape(-1, 2)
        found = np.full(len(wanted), -1, np.int64)
        for i, place in enumerate(np.searchsorted(self._keys, wanted[:, 0])):
            while place < len(self.index) and self._keys[place] == wanted[i, 0]:
                if self.index["rest"][place] == wanted[i, 1]:
                    found[i] = place
                place += 1
        return found

    def read(self, places: Array) -> Array:
        """The latents of index places, (n, C, h, w) float32, each checked against its checksum."""
        records = self.index[places]
        stored = self.latents[records["row"]]
        for latent, record in zip(stored, records, strict=True):
            if _check(latent.tobytes()) != int(record["check"]):
                raise self._damaged(f"latents.npy, row {int(record['row'])}, does not match its checksum")
        return np.asarray(stored, np.float32)

    def _manifest(self) -> dict[str, Any]:
        path = self.folder / "manifest.json"
        if not self.folder.is_dir():
            raise DataError(
                f"latent cache {self.folder} does not exist: make it with LatentCache.build or diva-rs cache"
            )
        try:
            manifest = json.loads(read_text(path))
            checksum = manifest.pop("checksum")
        except FileNotFoundError as err:
            raise self._damaged("manifest.json is missing") from err
        except OSError as err:
            raise self._damaged(f"manifest.json cannot be read ({err.strerror})") from err
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as err:
            raise self._damaged("manifest.json is not whole") from err
        if checksum != _json_hash(manifest):
            raise self._damaged("manifest.json does not match its checksum")
        if manifest.get("format") != _FORMAT:
            raise self._damaged(f"its format is {manifest.get('format')!r}, this version reads {_FORMAT!r}")
        fault = _fault(manifest)
        if fault:
            raise self._damaged(f"manifest.json has no valid {fault}")
        return manifest  # type: ignore[no-any-return]

    def _array(self, name: str, shape: list[int], dtype: np.dtype[Any]) -> Array:
        """Map a file into memory; a size that it only declares is never allocated."""
        path = self.folder / name
        try:
            open_regular(path).close()
            array: Array = np.lib.format.open_memmap(path, mode="r")
            size = path.stat().st_size
        except FileNotFoundError as err:
            raise self._damaged(f"{name} is missing") from err
        except Exception as err:  # NumPy parses the header as Python text, with the errors of its tokenizer
            raise self._damaged(f"{name} cannot be read ({str(err)[:200]})") from err
        got = (list(array.shape), array.dtype, size)
        want = (shape, dtype, array.nbytes + getattr(array, "offset", 0))
        if got != want or not array.flags.c_contiguous:
            raise self._damaged(f"{name} holds {got}, the manifest says {want} (shape, dtype, bytes)")
        return array

    def _damaged(self, what: str) -> DataError:
        return DataError(
            f"latent cache {self.folder} cannot be used: {what}; build it again with overwrite=True"
        )


def holds_store(folder: Path) -> bool:
    """Whether a folder holds (what is left of) a store and nothing else, so that it may be replaced."""
    names = {path.name for path in folder.iterdir()}
    return bool(names) and names <= set(FILES)


def _fault(manifest: dict[str, Any]) -> str | None:
    """The first entry that is not as `StoreWriter` writes it."""
    shape, teacher, view = (manifest.get(name) for name in ("shape", "teacher", "view"))
    sides = shape if isinstance(shape, list) and len(shape) == 4 else [None]
    valid = {
        "shape": all(type(side) is int and 0 < side < 2**48 for side in sides),
        "dtype": manifest.get("dtype") in ("float32", "float16"),
        "index": isinstance(manifest.get("index"), str),
        "teacher": isinstance(teacher, dict) and isinstance(teacher.get("describe"), str),
        "views": _views_fit(manifest.get("views")),
        "view": isinstance(view, dict) and {"source", "resampled", "image_size"} <= view.keys(),
    }
    return next((name for name, fits in valid.items() if not fits), None)


def _views_fit(views: Any) -> bool:
    """Whether the entry is one of `diva_rs.data.Views`; a cache of one view has none."""
    if views is None:
        return True
    try:
        Views(**views)
    except (TypeError, ConfigError):
        return False
    return True


def _check(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _json_hash(value: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def _file_hash(path: Path) -> str:
    state = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def _close_synced(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
