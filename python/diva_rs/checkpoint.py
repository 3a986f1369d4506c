"""Files that are either whole or not there: written beside their place, synced, renamed."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diva_rs.errors import DataError, WeightsError


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "note.txt"
    >>> write_text(path, "whole or not there")
    >>> path.read_text()
    'whole or not there'
    """
    beside = _beside(path)
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        _into_place(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a name -> tensor map as safetensors, atomically. Tensors that share storage are written once each.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "w.safetensors"
    >>> save_weights(path, {"weight": torch.ones(2)})
    >>> load_weights(path)
    {'weight': tensor([1., 1.])}
    """
    beside = _beside(path)
    try:
        # clone: safetensors refuses views of one storage, and a later step must not change what is being written.
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}, beside)
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        _into_place(beside, path)
    except (OSError, SafetensorError) as err:
        raise DataError(f"{path} could not be written ({err}): nothing at that path was changed") from err
    finally:
        beside.unlink(missing_ok=True)


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        WeightsError: the file is missing, truncated or no safetensors file; names it.
    """
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as err:
        raise WeightsError(f"{path} cannot be read as safetensors: {err}") from err


def save_state(folder: Path, state: Mapping[str, Any]) -> Path:
    """Write a `Trainer.state_dict` as a folder that appears whole or not at all; an older one there is replaced."""
    beside = _beside(folder)
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        save_weights(beside / "parameters.safetensors", state["parameters"])
        save_weights(beside / "optimizer.safetensors", state["optimizer"])
        facts = {"counters": state["counters"], "recipe": state["recipe"]}
        write_text(beside / "state.json", json.dumps(facts, indent=2) + "\n")
        old = folder.with_name(folder.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        _into_place(beside, folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def load_state(folder: str | Path) -> dict[str, Any]:
    """Read what `save_state` wrote, for `Trainer.load_state_dict`.

    Raises:
        WeightsError: a file is missing or damaged; names it.
    """
    folder = Path(folder)
    try:
        facts = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise WeightsError(f"{folder / 'state.json'} cannot be read: {err}") from err
    return {
        "parameters": load_weights(folder / "parameters.safetensors"),
        "optimizer": load_weights(folder / "optimizer.safetensors"),
        **facts,
    }


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _into_place(beside: Path, path: Path) -> None:
    os.replace(beside, path)
    # The rename itself is durable only once the folder is synced.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
