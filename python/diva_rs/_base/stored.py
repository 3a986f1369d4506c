"""Weights from any file: what a file is, is read off its bytes, since endings are often wrong."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diva_rs._base.checkpoint import FACTS, LONGEST, load_weights
from diva_rs._base.files import LFS, open_regular, read_text
from diva_rs._base.optional import one_line
from diva_rs._base.tensors import described, is_dense
from diva_rs._base.torchscript import is_torchscript, read_torchscript
from diva_rs.errors import WeightsError, a_type, shown

_LONGEST_HEADER = 100_000_000  # bytes: the most that safetensors takes
_AGAIN = "download it again"
_NOT_WEIGHTS = (
    (LFS, "is a pointer of Git LFS, not the weights: run git lfs pull in its folder"),
    (b"GGUF", "is a GGUF file, whose weights are quantized: give the model as safetensors"),
    (b"\x93NUMPY", "is an array of NumPy, not the weights of a model"),
)


class Stored(NamedTuple):
    """The weights of a file, and what their model computes, where the file says it."""

    weights: dict[str, Tensor]
    facts: dict[str, Any] | None = None


def read_stored(path: Path) -> Stored:
    """The weights in a file of safetensors, of ``torch.save`` or of ``torch.jit.save``, or of an index of
    several files. No code in a file is run. Raises WeightsError with the reason in one line.
    """
    if path.name.endswith(".index.json"):
        return _sharded(path)
    start = _start(path)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < _LONGEST_HEADER:
        return Stored(load_weights(path), read_facts(path))
    try:
        if is_torchscript(path):
            return Stored(checked(read_torchscript(path), str(path)))
        with open_regular(path) as file:  # with a path torch goes by the ending
            content = torch.load(file, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Exception as err:  # any error that torch.load raises on a damaged archive
        raise WeightsError(f"{path} {_why(err)}") from err
    return Stored(_of_checkpoint(content, path))


def read_facts(path: Path) -> dict[str, Any] | None:
    """What `save_weights` wrote about the model into a file of safetensors; None where it says nothing."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(FACTS)
        content = None if text is None else json.loads(text)
    except (OSError, SafetensorError, ValueError, RecursionError) as err:
        raise WeightsError(f"{path}: its metadata cannot be read: {one_line(err)}") from err
    return content if isinstance(content, dict) else None


def check_stored(path: Path) -> None:
    """Raise WeightsError if a file cannot hold weights: empty, a Git LFS pointer, a web page."""
    _start(path)


def checked(weights: Mapping[Any, Any], name: str) -> dict[str, Tensor]:
    """``weights``, if it maps names to dense tensors with values; otherwise WeightsError naming the entry."""
    for key, value in weights.items():
        entry = f"{name}: entry {shown(key, 200)}"
        if not isinstance(key, str) or len(key) > LONGEST or not isinstance(value, Tensor):
            name = f"a name of at most {LONGEST} characters"
            raise WeightsError(f"{entry} is {a_type(value)}, expected a tensor under {name}")
        if not is_dense(value) or value.is_meta:
            raise WeightsError(f"{entry} is {described(value)} on {value.device}, which holds no values")
    return dict(weights)


def _start(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            start = file.read(512)
    except OSError as err:
        raise WeightsError(f"{path} cannot be read as weights: {err.strerror or err}") from err
    if not start:
        raise WeightsError(f"{path} is empty: {_AGAIN}")
    for magic, reason in _NOT_WEIGHTS:
        if start.startswith(magic):
            raise WeightsError(f"{path} {reason}")
    if not re.search(rb"[^\t\n\r\x20-\x7e\x80-\xff]", start):
        text = shown(" ".join(start.decode("utf-8", "replace").split()), 40)
        raise WeightsError(f"{path} is text ({text}), as a server sends it in place of a file: {_AGAIN}")
    return start


def _sharded(path: Path) -> Stored:
    try:
        names = set(json.loads(read_text(path))["weight_map"].values())
        files = sorted(path.parent / Path(name).name for name in names)
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError) as err:
        raise WeightsError(f"{path} is not an index of weight files: {one_line(err)}") from err
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise WeightsError(f"{path} names {len(files)} files, and {missing[0]} is not beside it: {_AGAIN}")
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= read_stored(file).weights
    return Stored(weights)


def _of_checkpoint(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what a training script saved."""
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds {a_type(content)}, not a state dict")
    named = (content.get(name) for name in ("state_dict", "model", "model_state_dict"))
    inner = next((value for value in named if isinstance(value, Mapping)), None)
    if inner is None:
        others = {key: value for key, value in content.items() if _is_state_dict(value)}
        if len(others) > 1:
            names = ", ".join(map(str, others))
            raise WeightsError(f"{path} holds several state dicts ({names}): save the one meant alone")
        inner = next(iter(others.values()), content)
    return checked(inner, str(path))


def _is_state_dict(value: Any) -> bool:
    is_full = isinstance(value, Mapping) and len(value) > 0
    return is_full and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _why(err: Exception) -> str:
    """One line in place of torch's paragraph."""
    text = f"{type(err).__name__}: {err}"
    named = re.search(r"GLOBAL ([\w.]+)", text)
    if named:
        return f"holds Python objects ({named[1]}) beside tensors: save model.state_dict() alone"
    if re.search(r"BadZipFile|central directory|zip archive|[Rr]an out of input|truncated|EOF", text):
        return f"is damaged or incomplete: {_AGAIN}"
    inner = re.search(r"WeightsUnpickler error: (.*)", text)
    return f"cannot be read as weights: {inner[1] if inner else one_line(err).split('. ')[0]}"
