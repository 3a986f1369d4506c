"""The start of a run: the same recipe, weights and teacher on every rank, on its own device."""

import logging
import math
import socket
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs.clip import adapt
from diva_rs.diffusion import Teacher
from diva_rs.distributed import Ranks
from diva_rs.errors import ConfigError, DeviceError

_log = logging.getLogger("diva_rs")
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_NAMED = 8  # differences that a message shows


def check_same(what: str, own: dict[str, Any], ranks: Ranks) -> None:
    """Raise ConfigError on all ranks where one has other facts than rank 0."""
    first, *others = ranks.facts(own)
    for rank, other in enumerate(others, start=1):
        names = [name for name in {**first, **other} if first.get(name) != other.get(name)]
        if names:
            named = "; ".join(f"{name}={other.get(name)}, not {first.get(name)}" for name in names[:_NAMED])
            advice = "Load or make the same on every rank, with the same seed"
            raise ConfigError(f"rank {rank} has another {what} than rank 0: {named}. {advice}")


def share_weights(clip: nn.Module, ranks: Ranks) -> None:
    """Give every rank's ``clip`` the weights of rank 0's; warn where they differed."""
    if ranks.world == 1:
        return
    named = dict(_tensors(clip))
    check_same("CLIP", {name: f"{value.dtype} {tuple(value.shape)}" for name, value in named.items()}, ranks)
    copied = ranks.copy_from_first(named.values())
    differed = [name for name, yes in zip(named, copied, strict=True) if yes]
    if differed:
        text = "rank %d's CLIP differed from rank 0's in %d tensors, %s the first: rank 0's are used"
        _log.warning(text, ranks.rank, len(differed), differed[0])


def check_same_teacher(teacher: Teacher, prompt: str, ranks: Ranks) -> None:
    """Raise ConfigError where a rank has another teacher than rank 0; names what differs."""
    if ranks.world == 1:
        return
    sums = {
        f"sum of {type(module).__name__}'s {name}": _bit_sum(tensor)
        for module in teacher.modules()
        for name, tensor in _tensors(module)
        if not tensor.is_meta
    }
    check_same("diffusion model", sums, ranks)
    # Not to the bit: the text may have been encoded on another kind of device.
    norms = ranks.facts(float(teacher.text(prompt).double().norm()))
    for rank, norm in enumerate(norms):
        if not math.isclose(norm, norms[0], rel_tol=1e-2):
            raise ConfigError(f"rank {rank} has another text condition than rank 0: encode the same prompt")


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
    index = device.index or 0
    which = str(torch.cuda.get_device_properties(index).uuid) if device.type == "cuda" else None
    rows = ranks.facts((socket.gethostname(), which))
    if which is None:
        if torch.cuda.is_available() and ranks.first:
            _log.warning("CLIP is on the CPU, so the ranks train there: clip.cuda() before post_train")
        return unet
    target = gpu_of(rows, ranks.rank, ranks.local, index, torch.cuda.device_count())
    torch.cuda.set_device(target)
    if target == index:
        return unet
    home = torch.device("cuda", target)
    _log.warning("rank %d: CLIP and teacher move from %s to %s", ranks.rank, device, home)
    clip.to(home)
    # A folder cannot be moved: it is loaded later.
    move = getattr(unet, "on" if isinstance(unet, Teacher) else "to", None)
    return move(home) if move is not None and getattr(unet, "device", device) == device else unet


def gpu_of(rows: list[Any], rank: int, local: int, index: int, count: int) -> int:
    """The GPU for rank ``rank``: the one it is on, unless another rank is on it too.

    ``rows`` holds the machine and the GPU of every rank, ``local`` the rank's number on its
    machine, ``index`` the GPU it is on, ``count`` the number of GPUs of this machine.
    """
    if max(Counter(rows).values()) == 1:
        return index
    if local >= count:
        here = sum(row[0] == rows[rank][0] for row in rows)
        raise DeviceError(f"{here} ranks on {rows[rank][0]} for {count} GPUs: start at most {count} there")
    return local


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _bit_sum(tensor: Tensor) -> int:
    """The sum of the tensor's bit patterns: exact, in any order of addition."""
    plain = tensor.detach().contiguous()
    return int(plain.view(_INTEGERS[plain.element_size()]).sum(dtype=torch.int64))
