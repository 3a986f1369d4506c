"""The time in which the ranks work together: joined at its begin, left at its end."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from diva_rs._base.world import launched
from diva_rs.distributed.ranks import Ranks
from diva_rs.distributed.signals import noticed
from diva_rs.errors import DeviceError


@contextmanager
def session() -> Iterator[Ranks]:
    """Join the ranks that a launcher started, if any; at the end leave them as they were found.

    torch.distributed is initialized where the caller has not done it, and only then shut down
    again. An exception in the block is recorded for torchrun, which shows it and ends or restarts
    the other ranks. On several ranks Ctrl-C sets `Ranks.stopping`, so that all can stop after the
    same step; a second one raises. SIGTERM and its like do the same, or raise KeyboardInterrupt on
    one rank, and have their usual effect at the end. Raises DeviceError where the ranks cannot be
    joined, RankError where another one fails or is lost.

    >>> with session() as ranks:
    ...     ranks.world
    1
    """
    with noticed() as notice:
        joined = _join()
        try:
            ranks = Ranks(notice)
            notice.together = ranks.world > 1
            try:
                yield ranks
                ranks.wait()
            except Exception as err:
                from torch.distributed.elastic.multiprocessing.errors import get_error_handler

                # Where torchrun looks for it; under another launcher nothing happens.
                get_error_handler().record_exception(err)
                raise
            finally:
                ranks.close()
        finally:
            if joined:
                dist.destroy_process_group()


def _join() -> bool:
    """Initialize torch.distributed where a launcher started several ranks; returns whether it did."""
    place = launched()
    if place is None or not dist.is_available() or dist.is_initialized():
        return False
    cuda = torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    try:
        store, rank, world = next(iter(dist.rendezvous("env://")))  # type: ignore[attr-defined]
        if os.environ.get("LOCAL_WORLD_SIZE") == str(world):
            # torchrun keeps its store when it restarts the ranks, and with it the addresses of
            # those that died (pytorch issue 135712). On one machine the number of restarts tells
            # the starts apart.
            start = f"start_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
            store = dist.PrefixStore(start, store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    except (RuntimeError, ValueError) as err:
        raise DeviceError(
            f"rank {place.rank} could not join the {place.world} ranks that RANK, WORLD_SIZE, "
            f"MASTER_ADDR and MASTER_PORT announce: {err}. Without a launcher, unset these variables"
        ) from err
    return True
