"""Ctrl-C over several ranks: noted by whoever gets it, so that all stop at the same step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from diva_rs.distributed.heartbeat import Watch
from diva_rs.errors import RankError


class Stop:
    """Whether this rank was asked to stop.

    >>> Stop().wanted
    False
    """

    def __init__(self) -> None:
        self.wanted = False

    @contextmanager
    def listening(self, watch: Watch | None) -> Iterator[None]:
        """Within this block Ctrl-C is noted, and a second one raises RankError, which ends all ranks at once.

        Where there is one rank alone, Ctrl-C is what it ever was. ``watch`` interrupts in the same way: what
        has happened to another rank is raised then, wherever the main thread is.
        """
        before = signal.getsignal(signal.SIGINT)
        main = threading.current_thread() is threading.main_thread()
        if watch is None or before is None or not main:
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            watch.check()
            if self.wanted:
                raise RankError(f"rank {watch.rank} was interrupted a second time and ends at once")
            self.wanted = True

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
