"""Files that are either whole or not there: written beside their place, synced, renamed."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diva_rs._base.arguments import as_path
from diva_rs._base.files import open_regular, read_text
from diva_rs._base.manifest import NAME, manifest, verify
from diva_rs._base.optional import one_line
from diva_rs.errors import DataError, WeightsError, shown

__all__ = ["load_state", "load_weights", "save_state", "save_torch", "save_weights"]

_STATE_FILES = ("parameters.safetensors", "optimizer.safetensors", "state.json")
LONGEST = 1000  # characters of a weight's name
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")  # what `replacing` writes to


def make_folder(path: str | os.PathLike[str]) -> Path:
    """The folder, made with its parents where it is missing; ``~`` is the home folder.

    Raises:
        DataError: it is a file, or cannot be made; names it.

    >>> import tempfile
    >>> make_folder(tempfile.mkdtemp() + "/runs/a").is_dir()
    True
    """
    folder = as_path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise DataError(f"folder {folder} cannot be made: {err.strerror or err}") from err
    return folder


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        DataError: it cannot be written; whatever was there is unchanged.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "note.txt"
    >>> write_text(path, "whole or not there")
    >>> path.read_text()
    'whole or not there'
    """
    with replacing(path) as beside, open(beside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically. A number that is not finite becomes null, which every reader of JSON takes.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "history.json"
    >>> write_json(path, [{"loss": float("nan")}])
    >>> json.loads(path.read_text())
    [{'loss': None}]
    """
    write_text(path, json.dumps(_finite(content), indent=2, default=str, allow_nan=False) + "\n")


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a name -> tensor map as safetensors, atomically. Shared storage is written once per name.

    Raises:
        DataError: it cannot be written; whatever was there is unchanged.
        WeightsError: something is no tensor of plain numbers, or of a dtype that safetensors does not have.

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
            save_file(own, beside, metadata={"format": "pt"})
        except KeyError as err:
            raise WeightsError(
                f"weights of {err}, a dtype that safetensors does not have: convert them"
            ) from err
        with open(beside, "rb") as file:
            os.fsync(file.fileno())


def save_torch(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a name -> tensor map as ``torch.load(path, weights_only=True)`` reads it, atomically.

    Raises:
        DataError: it cannot be written; whatever was there is unchanged.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "w.pt"
    >>> save_torch(path, {"weight": torch.ones(2)})
    >>> torch.load(path, weights_only=True)
    {'weight': tensor([1., 1.])}
    """
    own = _copies(weights)  # a view would be written with all of the storage that it looks at
    with replacing(as_path(path)) as beside, open(beside, "wb") as file:
        torch.save(own, file)
        file.flush()
        os.fsync(file.fileno())


def _copies(weights: Any) -> dict[str, Tensor]:
    """A name -> tensor map on the CPU that shares no memory with the given one."""
    if not isinstance(weights, Mapping):
        raise WeightsError(f"weights is a {type(weights).__name__}: a mapping of names to tensors is needed")
    own: dict[str, Tensor] = {}
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(f"weights[{shown(name)}] is a {type(value).__name__}: a tensor is needed")
        try:
            own[name] = value.detach().cpu().contiguous().clone()
        except (RuntimeError, ValueError) as err:  # meta tensors, layouts that have no contiguous form
            raise WeightsError(f"weights[{shown(name)}] cannot be copied: {one_line(err)}") from err
        if own[name].layout != torch.strided or own[name].is_quantized or own[name].is_nested:
            raise WeightsError(
                f"weights[{shown(name)}] is sparse or quantized: call .to_dense() or dequantize()"
            )
    return own


def load_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        WeightsError: the file is missing, truncated or no safetensors file; names it.

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
    longest = max(map(len, weights), default=0)
    if longest > LONGEST:
        raise WeightsError(f"{path} holds a name of {longest} characters: no weight is called so")
    return weights


def save_state(folder: Path, state: Mapping[str, Any]) -> Path:
    """Write a `Trainer.state_dict` as a folder that appears whole or not at all, in place of an older one.

    A mapping under ``"run"``, JSON values alone, is kept with it: `post_train` puts its place in the data
    there. ``manifest.json`` holds the size and the SHA-256 of every other file.

    Raises:
        DataError: it cannot be written, or ``folder`` holds something else; what is there is unchanged.

    >>> import tempfile
    >>> folder = save_state(Path(tempfile.mkdtemp()) / "checkpoint", Trainer(clip, teacher).state_dict())
    >>> sorted(file.name for file in folder.iterdir())
    ['manifest.json', 'optimizer.safetensors', 'parameters.safetensors', 'state.json']
    """
    folder = as_path(folder, "folder")
    check_place(folder)
    for key in ("parameters", "optimizer"):
        if not isinstance(state, Mapping) or not isinstance(state.get(key), Mapping):
            raise WeightsError(f"state is no state of a Trainer: it has no tensors under {key!r}")
    facts = {key: state[key] for key in ("counters", "recipe", "run") if key in state}
    try:
        with replacing(folder) as beside:
            beside.mkdir(parents=True)
            save_weights(beside / "parameters.safetensors", state["parameters"])
            save_weights(beside / "optimizer.safetensors", state["optimizer"])
            write_json(beside / "state.json", facts)
            write_json(beside / NAME, manifest(beside, _STATE_FILES))
    except DataError as err:  # of a file in the folder beside, whose name says nothing
        raise DataError(
            f"{folder} could not be written ({err.__cause__ or err}): nothing at that path was changed"
        ) from err
    return folder


def check_place(folder: Path) -> None:
    """Raise DataError where `save_state` would replace a folder that holds something else than a checkpoint.

    >>> import tempfile
    >>> check_place(Path(tempfile.mkdtemp()))
    """
    known = {*_STATE_FILES, NAME}
    others = {file.name for file in folder.iterdir()} - known if folder.is_dir() else set()
    if others:
        found = sorted(others)[0]
        raise DataError(f"{folder} holds {found!r}, which is no checkpoint's: choose another folder")


def load_state(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `save_state` wrote, for `Trainer.load_state_dict`. Checksums are compared first.

    Raises:
        WeightsError: a file is missing or damaged; names it.

    >>> load_state("nowhere")
    Traceback (most recent call last):
    diva_rs.errors.WeightsError: nowhere/manifest.json cannot be read: ...
    """
    folder = as_path(folder, "folder")
    if not folder.exists() and _old(folder).exists():
        folder = _old(folder)  # the machine went down between the two renames of `_into_place`
    verify(folder, _STATE_FILES)
    file = folder / "state.json"
    try:
        facts = json.loads(read_text(file))
    except (OSError, ValueError, RecursionError) as err:
        raise WeightsError(f"{file} cannot be read: {err}") from err
    for key in ("counters", "recipe"):
        if not isinstance(facts, dict) or not isinstance(facts.get(key), dict):
            raise WeightsError(f"{file} is no state of a Trainer: it has no {key!r}")
    return {
        "parameters": load_weights(folder / "parameters.safetensors"),
        "optimizer": load_weights(folder / "optimizer.safetensors"),
        **{key: facts[key] for key in ("counters", "recipe", "run") if key in facts},
    }


def remove_folder(folder: Path) -> None:
    """Remove a folder so that a crash in between leaves no half of it under its name.

    >>> import tempfile
    >>> folder = make_folder(tempfile.mkdtemp() + "/old")
    >>> remove_folder(folder)
    >>> folder.exists()
    False
    """
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    _remove(aside)
    with suppress(FileNotFoundError):
        os.replace(folder, aside)
    _remove(aside)


def sweep(folder: Path) -> None:
    """Remove what writers that were killed have left in ``folder``.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / ".note.txt.123.tmp").touch()
    >>> sweep(folder)
    >>> list(folder.iterdir())
    []
    """
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            _remove(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write to; it takes the place of ``path`` at the end, or nothing changes."""
    if not path.name:
        raise DataError(
            f"'{path}' is a folder that cannot be replaced: give the name of a file or folder in it"
        )
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _remove(beside)
        yield beside
        _into_place(beside, path)
    except (OSError, SafetensorError) as err:
        raise DataError(f"{path} could not be written ({err}): nothing at that path was changed") from err
    finally:
        _remove(beside)


def _into_place(beside: Path, path: Path) -> None:
    aside = _old(path)
    moved = beside.is_dir() and path.is_dir()
    try:
        if moved:  # a rename replaces a file, but no folder that holds something
            _remove(aside)
            os.replace(path, aside)
        os.replace(beside, path)
    except BaseException:
        if moved and not path.exists():
            os.rename(aside, path)
        raise
    # The rename itself is durable only once the folder is synced.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    if moved:
        _remove(aside)


def _old(path: Path) -> Path:
    return path.with_name(path.name + ".old")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    infinite = isinstance(content, float) and content - content != 0
    return None if infinite else content
