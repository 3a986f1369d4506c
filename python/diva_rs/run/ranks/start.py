"""The start of a run: the same recipe, weights and teacher on every rank, on its own device."""

import logging
import socket
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs.clip import adapt
from diva_rs.diffusion import Teacher
from diva_rs.distributed import Ranks
from diva_rs.errors import ConfigError, DeviceError
from diva_rs.recipes.recipe import Recipe

_log = logging.getLogger("diva_rs")
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_same_recipe(recipe: Recipe, ranks: Ranks) -> None:
    """Raise ConfigError where a rank has other settings than rank 0; names the fields."""
    first, *others = ranks.facts(recipe.to_dict())
    for rank, other in enumerate(others, start=1):
        fields = [
            f"{name}={other[name]!r}, not {first[name]!r}" for name in first if first[name] != other[name]
        ]
        if fields:
            raise ConfigError(f"rank {rank} has another recipe than rank 0: {'; '.join(fields)}")


def share_weights(clip: nn.Module, ranks: Ranks) -> None:
    """Give every rank's ``clip`` the weights of rank 0's; warn where they differed."""
    if ranks.world == 1:
        return
    named = dict(_tensors(clip))
    first, *others = ranks.facts(
        {name: f"{value.dtype} {tuple(value.shape)}" for name, value in named.items()}
    )
    for rank, other in enumerate(others, start=1):
        name = _first_difference(first, other)
        if name is not None:
            raise ConfigError(
                f"rank {rank} has another CLIP than rank 0: {name} is {other.get(name, 'missing')} there and "
                f"{first.get(name, 'missing')} on rank 0"
            )
    copied = ranks.copy_from_first(named.values())
    differed = [name for name, yes in zip(named, copied, strict=True) if yes]
    if differed:
        _log.warning(
            "rank %d's CLIP differed from rank 0's in %d tensors, %s the first: rank 0's are used",
            *(ranks.rank, len(differed), differed[0]),
        )


def check_same_teacher(teacher: Teacher, prompt: str, ranks: Ranks) -> None:
    """Raise ConfigError where a rank has another teacher than rank 0; names what differs."""
    if ranks.world == 1:
        return
    sums = {
        f"{type(module).__name__}'s {name}": _bit_sum(tensor)
        for module in teacher.modules()
        for name, tensor in _tensors(module)
        if not tensor.is_meta
    }
    # Not to the bit: the text may have been encoded on another kind of device.
    norm = float(teacher.text(prompt).double().norm())
    (first, length), *others = ranks.facts((sums, norm))
    for rank, (other, its_length) in enumerate(others, start=1):
        wrong = _first_difference(first, other)
        if wrong is None and abs(its_length - length) > 1e-2 * abs(length):
            wrong = "text condition"
        if wrong is not None:
            raise ConfigError(
                f"rank {rank} has another diffusion model than rank 0: its {wrong} differs. Load the "
                "same weights on every rank, or seed what is drawn at random"
            )


def place_on_devices(clip: nn.Module, unet: Any, ranks: Ranks) -> Any:
    """Give each rank its own GPU where two would share one; returns the teacher, moved if need be.

    A script that puts its models on "cuda" puts those of all ranks on the first GPU. They move to
    the GPU of the rank's number on this machine (``LOCAL_RANK``), with a warning. Models on the CPU
    or on GPUs that differ stay, and so does a teacher that is not where CLIP is.
    """
    if ranks.world == 1:
        return unet
    adapt(clip)  # raises where this is no CLIP
    device = next(clip.parameters()).device
    if device.type != "cuda":
        if torch.cuda.is_available() and ranks.first:
            _log.warning("CLIP is on the CPU, so the ranks train there: clip.cuda() before post_train")
        ranks.facts(None)
        return unet
    index = device.index or 0
    which = str(torch.cuda.get_device_properties(index).uuid)
    rows = ranks.facts((socket.gethostname(), which))
    target = gpu_of(rows, ranks.rank, ranks.local, index, torch.cuda.device_count())
    torch.cuda.set_device(target)
    if target == index:
        return unet
    home = torch.device("cuda", target)
    _log.warning("rank %d: CLIP and teacher move from %s to %s", ranks.rank, device, home)
    clip.to(home)
    return _moved(unet, device, home)


def gpu_of(rows: list[Any], rank: int, local: int, index: int, count: int) -> int:
    """The GPU for rank ``rank``: the one it is on, unless another rank is on it too.

    ``rows`` holds the machine and the GPU of every rank, ``local`` the rank's number on its
    machine, ``index`` the GPU it is on, ``count`` the number of GPUs of this machine.

    >>> gpu_of([("a", "gpu0"), ("a", "gpu0")], rank=1, local=1, index=0, count=8)
    1
    """
    if max(Counter(rows).values()) == 1:
        return index
    if local >= count:
        here = sum(row[0] == rows[rank][0] for row in rows)
        raise DeviceError(f"{here} ranks on {rows[rank][0]} for {count} GPUs: start at most {count} there")
    return local


def _moved(unet: Any, old: torch.device, home: torch.device) -> Any:
    if isinstance(unet, Teacher):
        return unet if unet.device != old else unet.on(home)
    if isinstance(unet, str) or not callable(getattr(unet, "to", None)):
        return unet  # a folder, which is loaded later
    return unet.to(home) if getattr(unet, "device", old) == old else unet


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _first_difference(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    names = [*one, *(name for name in other if name not in one)]
    return next((name for name in names if one.get(name) != other.get(name)), None)


def _bit_sum(tensor: Tensor) -> int:
    """The sum of the tensor's bit patterns: exact, in any order of addition."""
    plain = tensor.detach().contiguous()
    if plain.is_floating_point() or plain.dtype == torch.bool:
        plain = plain.view(_INTEGERS[plain.element_size()])
    return int(plain.sum(dtype=torch.int64))
