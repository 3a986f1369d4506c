"""What a run was made from and where it ran, for its report; no names of hosts or users."""

import os
import platform
import resource
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

import diva_rs._native as _native
from diva_rs.run.loader import length_of
from diva_rs.step.trainer import Trainer

_LIBRARIES = ("open_clip_torch", "timm", "transformers", "diffusers", "torchvision", "numpy")


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, machine, and the most memory in use so far: PyTorch's on CUDA, otherwise the process's."""
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
        "libraries": {},
    }
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            facts["libraries"][name] = version(name)
    if cuda:
        properties = torch.cuda.get_device_properties(device)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        facts["gpu"] = f"{properties.name}, {memory}, CUDA {torch.version.cuda}"
    return facts


def describe_models(trainer: Trainer) -> dict[str, Any]:
    """The models, what trains of them, the losses, and what runs natively."""
    parts = trainer.step_modules.parts.items()
    return {
        "clip": name_of(trainer),
        "teacher": "none" if trainer.teacher is None else trainer.teacher.describe(),
        "trained_parameters": {
            "clip" if part == "tower" else part: sum(p.numel() for p in named.values())
            for part, named in parts
        },
        "losses": list(trainer.step_modules.all_loss_names),
        "backend": trainer.backend,
    }


def name_of(trainer: Trainer) -> str:
    """CLIP's class and its vision tower's."""
    return f"{type(trainer.clip).__name__} ({trainer.step_modules.tower.name})"


def trained_ids(trainer: Trainer) -> set[int]:
    """The ids of the parameters that train."""
    return {id(parameter) for parameter in trainer.parameters().values()}


def trained_denoiser(trainer: Trainer) -> nn.Module | None:
    """The teacher's denoiser, if any of its parameters train."""
    if trainer.teacher is None:
        return None
    denoiser: nn.Module = trainer.teacher.unet
    return denoiser if trained_ids(trainer) & {id(p) for p in denoiser.parameters()} else None


def describe_data(loader: Any) -> str:
    """The images in one line: their dataset, and what diva_rs's own loaders used and left out."""
    accounting = getattr(loader, "accounting", None)
    return _name_of_data(loader) if accounting is None else f"{_name_of_data(loader)}: {accounting}"


def _name_of_data(loader: Any) -> str:
    """The ``repr`` of the loader's dataset, or its class and length."""
    if isinstance(loader, (list, tuple)):
        return f"a {type(loader).__name__} of {len(loader)} batch{'' if len(loader) == 1 else 'es'}"
    data = getattr(loader, "dataset", None)
    data = loader if data is None else data
    said = "" if isinstance(data, (list, tuple, torch.Tensor)) else " ".join(repr(data).split())
    if said and " object at 0x" not in said:  # an address says nothing
        return said if len(said) <= 200 else said[:199] + "…"
    length = length_of(data)
    kind = "batches" if data is loader else "images"
    return type(data).__name__ + ("" if length is None else f", {length:,} {kind}")


def _resident() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024  # macOS counts bytes, Linux KiB
