"""Noticing a rank that fails: each one leaves a heartbeat in a store, and a message before it goes.

The store is a key-value server in rank 0's process. Every rank counts up its own heartbeat there twice a
second; rank 0 looks at all of them, the others at rank 0's. Who raises leaves its traceback first.
"""

import _thread
import os
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

from diva_rs.errors import RankError

TICK = 0.5  # seconds between two heartbeats
GRACE = 10.0  # seconds that the main thread has to end by itself
_PATIENCE = 5.0  # seconds of silence that name the rank once a connection has broken
_LIMIT = "DIVA_RS_RANK_TIMEOUT"


def limit() -> float:
    """Seconds of silence after which a rank counts as lost: the variable DIVA_RS_RANK_TIMEOUT, or 45.

    >>> limit()
    45.0
    """
    try:
        return max(float(os.environ[_LIMIT]), 4 * TICK)
    except (KeyError, ValueError):
        return 45.0


class Watch:
    """This rank's heartbeat and its eye on the others, in a thread of its own.

    ``store`` is a client of the run's TCPStore; ``rank`` and ``world`` are as in torch.distributed. To be
    made by every rank before any of them calls `start`.
    """

    def __init__(self, store: Any, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self.fault: str | None = None  # what has happened to another rank
        self._store, self._limit = store, limit()
        self._count, self._ticked = 0, time.monotonic()
        self._stop, self._noticed = threading.Event(), threading.Event()
        self._interrupts = threading.current_thread() is threading.main_thread()
        self._beat()
        self._thread = threading.Thread(target=self._run, name="diva_rs-watch", daemon=True)

    def start(self) -> None:
        """Begin, once every rank has left its first heartbeat."""
        self._ticked = time.monotonic()
        self._thread.start()

    def check(self) -> None:
        """Raise what has happened to another rank, if anything has.

        Raises:
            RankError: a rank failed or is lost; names it, with its traceback where there is one.
        """
        if self.fault is None and time.monotonic() - self._ticked > self._limit:
            self.fault = self._lost([0], "its store does not answer")  # and the thread waits for it
        if self.fault is not None:
            self._noticed.set()
            raise RankError(self.fault)

    def tell(self, error: str) -> None:
        """Leave this rank's failure for the others, and wait a little until they have read it."""
        if self.fault is not None:
            return  # it is theirs that this rank fails of
        self._stop.set()
        with suppress(RuntimeError):  # who does not read it in time has gone already
            self._post(f"rank {self.rank} failed, which ends this rank too:\n{error}")
            others = [f"read/{rank}" for rank in range(self.world) if rank != self.rank]
            self._store.wait(others, timedelta(seconds=6 * TICK))

    def why(self, error: BaseException) -> str:
        """The reason of a broken connection: a rank's own message, or which ranks have fallen silent."""
        self._noticed.set()
        silence, end = _Silence(), time.monotonic() + self._limit
        while self.fault is None and time.monotonic() < end:
            try:
                self._judge(silence.of(self._beats(), _PATIENCE), _PATIENCE)
            except RuntimeError:
                self.fault = self._lost([0], "its store is gone")
            time.sleep(TICK / 5)
        return self.fault or f"the connection to another rank broke: {error}"

    def close(self) -> None:
        """Stop watching and being watched."""
        self._stop.set()
        self._noticed.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=4 * TICK)  # it may wait for a store that does not answer

    def _run(self) -> None:
        silence = _Silence()
        while not self._stop.wait(TICK):
            try:
                self._beat()
                if self._store.check(["failure"]):
                    self._store.set(f"read/{self.rank}", "1")
                    self.fault = self._store.get("failure").decode()
                else:
                    beats = self._beats() if self.rank == 0 else {0: self._store.get("beat/0")}
                    self._judge(silence.of(beats, self._limit), self._limit)
            except RuntimeError:  # the store's: its server was in rank 0's process
                if self._stop.is_set():
                    return
                self.fault = self._lost([0], "its store is gone")
            if self.fault is not None:
                return self._end()

    def _beat(self) -> None:
        self._count += 1
        self._store.set(f"beat/{self.rank}", str(self._count))
        self._ticked = time.monotonic()

    def _beats(self) -> dict[int, bytes]:
        beats = self._store.multi_get([f"beat/{rank}" for rank in range(self.world)])
        return {rank: beat for rank, beat in enumerate(beats) if rank != self.rank}

    def _judge(self, silent: list[int], seconds: float) -> None:
        if silent:
            self._post(self._lost(silent, f"nothing was heard of it for {seconds:.0f} s"))
            self.fault = self._store.get("failure").decode()

    def _post(self, text: str) -> None:
        self._store.compare_set("failure", "", text)  # the first one to fail is the one to blame

    def _lost(self, ranks: list[int], how: str) -> str:
        names = ", ".join(map(str, ranks))
        return (
            f"rank {names} of {self.world} is lost ({how}): it was killed, or its machine is down or cut "
            "off. Start the run again; with the same output_dir it goes on from its last checkpoint"
        )

    def _end(self) -> None:
        """Make the main thread raise; where it waits for the device or the network, end the process."""
        if self._interrupts and not self._noticed.is_set():
            _thread.interrupt_main()  # the handler of `session` raises `fault`
        if not self._noticed.wait(GRACE):
            print(f"diva_rs.errors.RankError on rank {self.rank}: {self.fault}", file=sys.stderr, flush=True)
            os._exit(1)


class _Silence:
    """For how long each rank's heartbeat has not changed, by this rank's own clock."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[bytes, float]] = {}

    def of(self, beats: dict[int, bytes], seconds: float) -> list[int]:
        """The ranks that have been silent for that long."""
        now, silent = time.monotonic(), []
        for rank, beat in beats.items():
            before, since = self._last.get(rank, (None, now))
            if beat != before:
                self._last[rank] = (beat, now)
            elif now - since > seconds:
                silent.append(rank)
        return silent
