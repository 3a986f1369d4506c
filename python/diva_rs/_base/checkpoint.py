"""Weights as safetensors, and checkpoints: a trainer's state as a folder with checksums."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diva_rs._base.files import (
    as_path,
    check_replaceable,
    make_folder,
    old,
    open_regular,
    read_json,
    replacing,
    sync,
    write_json,
)
from diva_rs._base.optional import one_line
from diva_rs._base.tensors import described, is_dense
from diva_rs.errors import WeightsError, shown

__all__ = ["load_state", "load_weights", "save_state", "save_torch", "save_weights"]

MANIFEST = "manifest.json"
FACTS = "diva_rs"  # the key of a model's facts in the metadata of safetensors
LONGEST = 1000  # characters of a weight's name
_STATE_FILES = ("parameters.safetensors", "optimizer.safetensors", "state.json")
# Of a trainer's state, the content of state.json.
_FACTS = ("counters", "recipe", "low_rank", "products", "run")


def save_weights(
    path: str | os.PathLike[str], weights: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None
) -> None:
    """Write a name -> tensor map as safetensors, atomically. Shared storage is written once per name.

    ``facts`` are JSON values about the model, which the metadata holds as well. Raises DataError if the file
    cannot be written (an older one is unchanged), WeightsError for an entry that is no dense tensor or has a
    dtype that safetensors does not have.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "w.safetensors"
    >>> save_weights(path, {"weight": torch.ones(2)})
    >>> load_weights(path)
    {'weight': tensor([1., 1.])}
    """
    # Copies: safetensors refuses views of one storage, and a later step must not change what is written.
    own = _copies(weights)
    with replacing(as_path(path)) as beside:
        # transformers 4.x refuses a file that does not say which library its tensors are of.
        try:
            about = {} if facts is None else {FACTS: json.dumps(facts)}
            save_file(own, beside, metadata={"format": "pt", **about})
        except KeyError as err:
            raise WeightsError(f"weights of {err}, a dtype that safetensors lacks: convert them") from err
        except SafetensorError as err:
            raise OSError(str(err)) from err
        _sort_metadata(beside)
        sync(beside)


def save_torch(path: str | os.PathLike[str], weights: Mapping[str, Tensor]) -> None:
    """Write a name -> tensor map for ``torch.load(path, weights_only=True)``, atomically; raises DataError.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "w.pt"
    >>> save_torch(path, {"weight": torch.ones(2)})
    >>> torch.load(path, weights_only=True)
    {'weight': tensor([1., 1.])}
    """
    own = _copies(weights)  # a view would be written with all of its storage
    with replacing(as_path(path)) as beside:
        with open(beside, "wb") as file:
            torch.save(own, file)
        sync(beside)


def load_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a safetensors file. Raises WeightsError naming a file that is missing or damaged.

    >>> load_weights("nowhere.safetensors")
    Traceback (most recent call last):
    diva_rs.errors.WeightsError: nowhere.safetensors cannot be read as safetensors: ...
    """
    path = as_path(path)
    try:
        open_regular(path).close()
        weights = dict(load_file(path))
    except (OSError, SafetensorError, ValueError, MemoryError) as err:
        raise WeightsError(f"{path} cannot be read as safetensors: {one_line(err)}") from err
    if max(map(len, weights), default=0) > LONGEST:
        raise WeightsError(f"{path} is damaged: it holds a name of more than {LONGEST} characters")
    return weights


def save_state(folder: str | os.PathLike[str], state: Mapping[str, Any]) -> Path:
    """Write a `Trainer.state_dict` as a folder that appears whole or not at all, in place of an older one.

    A mapping of JSON values under ``"run"`` is saved with it: `post_train` keeps its progress there.
    ``manifest.json`` holds the size and the SHA-256 of every other file. Raises DataError if the folder
    cannot be written or holds other files; then nothing has changed.

    >>> clip, teacher, images = diva_rs.microworld.example()
    >>> import tempfile
    >>> folder = save_state(Path(tempfile.mkdtemp()) / "checkpoint", Trainer(clip, teacher).state_dict())
    >>> sorted(file.name for file in folder.iterdir())
    ['manifest.json', 'optimizer.safetensors', 'parameters.safetensors', 'state.json']
    """
    folder = as_path(folder)
    check_place(folder)
    make_folder(folder.parent)
    with replacing(folder) as beside:
        beside.mkdir()
        save_weights(beside / "parameters.safetensors", state["parameters"])
        save_weights(beside / "optimizer.safetensors", state["optimizer"])
        write_json(beside / "state.json", {key: state[key] for key in _FACTS if key in state})
        write_manifest(beside, _STATE_FILES)
    return folder


def load_state(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `save_state` wrote, for `Trainer.load_state_dict`. Checksums are compared first.

    Raises WeightsError naming a file that is missing or damaged.

    >>> load_state("nowhere")
    Traceback (most recent call last):
    diva_rs.errors.WeightsError: nowhere/manifest.json cannot be read: ...
    """
    folder = as_path(folder)
    if not folder.exists() and old(folder).exists():
        folder = old(folder)  # the machine went down between the two renames of `replacing`
    verify(folder, _STATE_FILES)
    file = folder / "state.json"
    facts = read_json(file, error=WeightsError)
    for key in ("counters", "recipe"):
        if not isinstance(facts, dict) or not isinstance(facts.get(key), dict):
            raise WeightsError(f"{file} is not the state of a Trainer: it has no {key!r}")
    return {
        "parameters": load_weights(folder / "parameters.safetensors"),
        "optimizer": load_weights(folder / "optimizer.safetensors"),
        **{key: facts[key] for key in _FACTS if key in facts},
    }


def check_place(folder: Path) -> None:
    """Raise DataError if ``folder`` holds other files, which `save_state` would remove."""
    check_replaceable(folder, (*_STATE_FILES, MANIFEST), "a checkpoint")


def write_manifest(folder: Path, names: Iterable[str]) -> None:
    """Write the size and SHA-256 of each file into ``manifest.json``."""
    files = {name: folder / name for name in sorted(names)}
    entries = {n: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for n, file in files.items()}
    write_json(folder / MANIFEST, entries)


def verify(folder: Path, names: Iterable[str]) -> None:
    """Compare the files ``names`` with the folder's manifest; WeightsError names one that is damaged."""
    path = folder / MANIFEST
    listed = read_json(path, error=WeightsError)
    for name in names:
        entry = listed.get(name) if isinstance(listed, dict) else None
        if not isinstance(entry, dict):
            raise WeightsError(f"{path} is not the manifest of this folder: it does not list {name}")
        file = folder / name
        try:
            intact = file.stat().st_size == entry.get("bytes") and _sha256(file) == entry.get("sha256")
        except OSError as err:
            raise WeightsError(f"{file} cannot be read: {err}") from err
        if not intact:
            raise WeightsError(f"{file} is damaged: its size or checksum differs from that in {MANIFEST}")


def _copies(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A name -> tensor map on the CPU that shares no memory with the given one."""
    own: dict[str, Tensor] = {}
    for name, value in weights.items():
        if not isinstance(name, str) or not is_dense(value) or value.is_meta:
            what = f"weights[{shown(name)}] is {described(value)}"
            raise WeightsError(f"{what}: a dense tensor that holds values is needed")
        own[name] = value.detach().cpu().contiguous().clone()
    return own


def _sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in order: safetensors shuffles it, equal files would differ."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
