"""Which rank this process is, before and after the ranks have joined."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from diva_rs.errors import ConfigError

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_alone = 0  # how many `alone` blocks are open


class Launched(NamedTuple):
    """The rank, the number of ranks, and the rank's number on this machine, as the launcher set them."""

    rank: int
    world: int
    local: int


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) outside torch.distributed and within `alone`.

    >>> rank_and_world()
    (0, 1)
    """
    distributed = torch.distributed
    if not _alone and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


@contextmanager
def alone() -> Iterator[None]:
    """Within this block the process counts as the only rank, so that readers give it all images.

    For work that one rank does while the others wait, such as an evaluation.

    >>> with alone():
    ...     rank_and_world()
    (0, 1)
    """
    global _alone
    _alone += 1
    try:
        yield
    finally:
        _alone -= 1


def launched() -> Launched | None:
    """What torchrun, accelerate launch or a script set in the environment: ``RANK``, ``WORLD_SIZE``,
    ``MASTER_ADDR``, ``MASTER_PORT`` and ``LOCAL_RANK`` (default: the rank). None for a single process.

    >>> launched()
    """
    if any(not os.environ.get(name) for name in _VARIABLES):
        return None
    rank, world = _number("RANK"), _number("WORLD_SIZE")
    if rank >= world:
        raise ConfigError(f"RANK={rank} is not below WORLD_SIZE={world}: ranks count from 0")
    return Launched(rank, world, local_rank(rank)) if world > 1 else None


def local_rank(rank: int) -> int:
    """The number of this process, rank ``rank``, on its machine: ``LOCAL_RANK``, or the rank itself."""
    return _number("LOCAL_RANK") if os.environ.get("LOCAL_RANK") else rank


def _number(name: str) -> int:
    text = os.environ[name]
    if not text.isdecimal():
        raise ConfigError(f"the environment variable {name} is {text!r}: a whole number is needed")
    return int(text)
