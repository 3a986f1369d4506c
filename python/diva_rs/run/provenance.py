"""What a run was made from and where it ran, for its report. No name of a host or a user is in it."""

import os
import platform
import resource
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import diva_rs._native as _native

_LIBRARIES = ("open_clip_torch", "timm", "transformers", "diffusers", "torchvision", "numpy")


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, machine, and the most memory that was in use so far.

    ``peak_memory_bytes`` is what PyTorch allocated on a CUDA device, elsewhere the whole process's
    resident memory.

    >>> sorted(environment(torch.device("cpu")))[:4]
    ['cpus', 'device', 'diva_rs', 'libraries']
    """
    cuda = device.type == "cuda"
    facts: dict[str, Any] = {
        "device": str(device),
        "diva_rs": _native.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()}, {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if cuda else _resident(),
        "libraries": {name: found for name in _LIBRARIES if (found := _version(name)) is not None},
    }
    if cuda:
        properties = torch.cuda.get_device_properties(device)
        facts["gpu"] = (
            f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
        )
    return facts


def describe_data(loader: Any) -> str:
    """The images in one line: what their dataset says of itself, or its class and length.

    >>> describe_data([torch.zeros(2, 3, 8, 8)])
    'a list of 1 batch'
    >>> describe_data(torch.utils.data.DataLoader(range(6), batch_size=2))
    'range(0, 6)'
    """
    if isinstance(loader, (list, tuple)):
        return f"a {type(loader).__name__} of {len(loader)} batch{'' if len(loader) == 1 else 'es'}"
    data = getattr(loader, "dataset", None)
    data = loader if data is None else data
    said = "" if isinstance(data, (list, tuple, torch.Tensor)) else " ".join(repr(data).split())
    if said and " object at 0x" not in said:  # an address says nothing
        return said if len(said) <= 200 else said[:199] + "…"
    try:
        return f"{type(data).__name__}, {len(data):,} {'batches' if data is loader else 'images'}"
    except (TypeError, NotImplementedError):
        return type(data).__name__


def _resident() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
