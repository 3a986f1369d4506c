"""Beginning equal: the same recipe, weights and teacher on every rank, and each rank on its own device."""

import logging
import socket
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs.clip import adapt
from diva_rs.diffusion import Teacher
from diva_rs.distributed.ranks import Ranks
from diva_rs.errors import ConfigError, DeviceError
from diva_rs.recipes.recipe import Recipe

_log = logging.getLogger("diva_rs")
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_recipe(recipe: Recipe, ranks: Ranks) -> None:
    """Refuse to begin where the ranks were given different settings.

    Raises:
        ConfigError: names the rank, and the fields that differ from rank 0's.

    >>> same_recipe(Recipe(), Ranks())
    """
    first, *others = ranks.facts(recipe.to_dict())
    for rank, other in enumerate(others, start=1):
        fields = [
            f"{name}={other[name]!r}, not {first[name]!r}" for name in first if first[name] != other[name]
        ]
        if fields:
            raise ConfigError(f"rank {rank} has another recipe than rank 0: {'; '.join(fields)}")


def same_weights(clip: nn.Module, ranks: Ranks) -> None:
    """Give every rank's ``clip`` the parameters and buffers of rank 0's, and say so where they differed.

    Raises:
        ConfigError: the model of a rank has other parameters than rank 0's; names one.

    >>> same_weights(clip, Ranks())
    """
    if ranks.world == 1:
        return
    named = dict(_tensors(clip))
    own = {name: f"{tensor.dtype} {tuple(tensor.shape)}" for name, tensor in named.items()}
    first, *others = ranks.facts(own)
    for rank, other in enumerate(others, start=1):
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                raise ConfigError(
                    f"rank {rank} has another CLIP than rank 0: {name} is {other.get(name, 'missing')} there "
                    f"and {first.get(name, 'missing')} on rank 0"
                )
    differed = [name for name, yes in zip(named, ranks.copy_from_first(named.values()), strict=True) if yes]
    if differed:
        _log.warning(
            "rank %d's CLIP differed from rank 0's in %d tensors, %s the first: rank 0's are used",
            ranks.rank,
            len(differed),
            differed[0],
        )


def same_teacher(teacher: Teacher, prompt: str, ranks: Ranks) -> None:
    """Refuse to begin where the ranks were given different diffusion models.

    Raises:
        ConfigError: names the rank, and what differs.

    >>> same_teacher(teacher, "", Ranks())
    """
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
    first, *others = ranks.facts([sums, norm])
    for rank, other in enumerate(others, start=1):
        wrong = next((name for name in first[0] if other[0].get(name) != first[0][name]), None)
        if wrong is None and abs(other[1] - first[1]) > 1e-2 * abs(first[1]):
            wrong = "text condition"
        if wrong is not None:
            raise ConfigError(
                f"rank {rank} has another diffusion model than rank 0, as its {wrong} shows: load the same "
                "weights on every rank, or seed what is drawn at random"
            )


def settle(clip: nn.Module, unet: Any, ranks: Ranks) -> Any:
    """Give each rank a GPU of its own where two would share one; returns the teacher to go on with.

    Models that were put on "cuda" by a script that knows nothing of ranks are all on the first GPU. They go
    to the one of the rank's number on this machine (``LOCAL_RANK``), and a warning says so. Models on the
    CPU, and GPUs that the script has told apart, stay as they are; so does a teacher that is not
    where CLIP is.

    Raises:
        DeviceError: there are more ranks on this machine than GPUs for them.

    >>> settle(clip, teacher, Ranks()) is teacher
    True
    """
    if ranks.world == 1:
        return unet
    adapt(clip)  # what is no CLIP is told as such
    device = next(clip.parameters()).device
    if device.type != "cuda":
        if torch.cuda.is_available() and ranks.first:
            _log.warning("CLIP is on the CPU, and so the ranks train there: clip.cuda() before post_train")
        ranks.facts(None)
        return unet
    index = device.index or 0
    which = str(torch.cuda.get_device_properties(index).uuid)
    rows = ranks.facts([socket.gethostname(), which])
    target = gpu_of(rows, ranks.rank, ranks.local, index, torch.cuda.device_count())
    torch.cuda.set_device(target)
    if target == index:
        return unet
    home = torch.device("cuda", target)
    _log.warning("rank %d: CLIP and teacher move from %s to %s, a GPU of their own", ranks.rank, device, home)
    clip.to(home)
    return _moved(unet, device, home)


def gpu_of(rows: list[Any], rank: int, local: int, index: int, count: int) -> int:
    """The GPU for rank ``rank``: the one it is on, unless another rank is on it too.

    ``rows`` holds the machine and the GPU of every rank, ``local`` the rank's number on its machine,
    ``index`` the GPU it is on, ``count`` how many this machine has.

    >>> gpu_of([["a", "gpu0"], ["a", "gpu0"]], rank=1, local=1, index=0, count=8)
    1
    >>> gpu_of([["a", "gpu2"], ["a", "gpu4"]], rank=1, local=1, index=4, count=8)
    4
    """
    if max(Counter(tuple(row) for row in rows).values()) == 1:
        return index
    if local >= count:
        here = sum(row[0] == rows[rank][0] for row in rows)
        raise DeviceError(f"{here} ranks on {rows[rank][0]} for {count} GPUs: start at most {count} there")
    return local


def _moved(unet: Any, old: torch.device, home: torch.device) -> Any:
    if isinstance(unet, Teacher):
        return unet if unet.device != old else unet.on(home)
    if isinstance(unet, str) or not callable(getattr(unet, "to", None)):
        return unet  # a folder: `Teacher.of` loads it
    return unet.to(home) if getattr(unet, "device", old) == old else unet


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _bit_sum(tensor: Tensor) -> int:
    """The sum of the tensor's bit patterns: exact, in whatever order a device adds."""
    plain = tensor.detach().contiguous()
    if plain.is_floating_point() or plain.dtype == torch.bool:
        plain = plain.view(_INTEGERS[plain.element_size()])
    return int(plain.sum(dtype=torch.int64))
