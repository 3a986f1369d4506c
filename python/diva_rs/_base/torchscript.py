"""The weights of a TorchScript archive, without its code: `torch.jit.load` would run what a file says."""

import functools
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diva_rs.errors import WeightsError

_UNUSUAL = "save torch.jit.load(path).state_dict() with torch.save, if you trust the file"
_DTYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "BoolStorage": torch.bool,
}


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive that ``torch.jit.save`` wrote."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Name -> tensor of every parameter and buffer. Raises pickle's, zipfile's and torch's errors."""
    with zipfile.ZipFile(path) as archive:
        root = next(n.removesuffix("data.pkl") for n in archive.namelist() if n.endswith("/data.pkl"))
        # Compressed entries could be far larger than the file; torch compresses the code alone.
        data = [entry for entry in archive.infolist() if entry.filename.startswith(f"{root}data")]
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in data):
            raise WeightsError(f"{path} is a TorchScript archive with compressed weights: {_UNUSUAL}")
        with archive.open(f"{root}data.pkl") as file:
            module = _Unpickler(file, lambda key: archive.read(f"{root}data/{key}")).load()
    return dict(_tensors(module, ""))


class _Module:
    """Stands for a module of any class."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Creates tensors, lists and `_Module`, and nothing else."""

    def __init__(self, file: Any, read: Callable[[str], bytes]) -> None:
        super().__init__(file)
        self.read = functools.cache(read)

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle":  # build_intlist and others
            return list
        raise WeightsError(f"the TorchScript archive holds a {module}.{name} beside its weights: {_UNUSUAL}")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, _ = pid
        data = bytearray(self.read(key))
        return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype, device="cpu")


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    return torch.as_strided(storage, size, stride, offset)


def _tensors(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    state = module.state if isinstance(module, _Module) else None
    for name, value in state.items() if isinstance(state, dict) else ():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        yield from _tensors(value, f"{prefix}{name}.")
