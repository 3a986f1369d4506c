"""The time in which the ranks work together: joined at its begin, watched, and left at its end."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from diva_rs._base.world import Launched, launched
from diva_rs.distributed.ranks import Ranks
from diva_rs.errors import DeviceError

_START = timedelta(minutes=10)  # until the last rank has started, models loaded


@contextmanager
def session() -> Iterator[Ranks]:
    """Join the ranks that a launcher started, if any; at the end leave them as they were found.

    torch.distributed is initialised where nobody has done it, and only then shut down again. An exception in
    the block is told to the other ranks, which end with a `RankError` that holds its traceback. Ctrl-C is
    noted (`Stop.wanted`) so that all ranks can stop at the same step; a second one raises.

    Raises:
        DeviceError: the ranks could not be joined within ten minutes.
        RankError: another rank failed or is lost.

    >>> with session() as ranks:
    ...     ranks.world
    1
    """
    made = _join(launched())
    try:
        ranks = Ranks()
        try:
            with ranks.stop.listening(ranks.watch):
                try:
                    yield ranks
                    ranks.wait()
                except BaseException:
                    if ranks.watch is not None:
                        ranks.watch.tell(traceback.format_exc())
                    raise
        finally:
            ranks.close()
    finally:
        if made:
            dist.destroy_process_group()


def _join(told: Launched | None) -> bool:
    if told is None or not dist.is_available() or dist.is_initialized():
        return False
    # The default group only introduces the ranks to each other; `Ranks` makes those that tensors go through.
    try:
        dist.init_process_group("gloo", timeout=_START)
    except (RuntimeError, ValueError) as err:
        raise DeviceError(
            f"rank {told.rank} could not join the {told.world} ranks that RANK, WORLD_SIZE, MASTER_ADDR and "
            f"MASTER_PORT announce: {err}. Outside a launcher, unset these variables"
        ) from err
    return True
