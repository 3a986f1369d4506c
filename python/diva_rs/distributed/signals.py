"""Signals that end a run. It ends after a whole step and writes its checkpoint; then they take effect."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_log = logging.getLogger("diva_rs")

# Slurm, torchrun and preemption send SIGTERM, a terminal that closes SIGHUP, batch systems a user
# signal some time before SIGKILL.
_NOTICES: tuple[int, ...] = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_COPY = 3.0  # seconds in which a second Ctrl-C is a launcher's copy of the terminal's


class Notice:
    """A handler of the signals that end a process; the first is its `number`, later ones change nothing.

    On one rank it raises KeyboardInterrupt; with ``together`` it sets ``stopping``, which all ranks
    look at after each batch.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.together = self.stopping = False
        self.before: dict[int, Any] = {}
        self._process, self._interrupted = os.getpid(), 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a fork
            signal.signal(number, self.before[number])
            signal.raise_signal(number)
        elif self.number is None:
            self.number, self.stopping = number, True
            if not self.together:
                raise KeyboardInterrupt

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """As SIGINT's handler: several ranks note the first Ctrl-C, and a later one raises."""
        if not self.together or os.getpid() != self._process:
            self.before[number](number, frame)
        elif not self.stopping:
            self.stopping, self._interrupted = True, time.monotonic()
        elif time.monotonic() - self._interrupted > _COPY:
            raise KeyboardInterrupt


@contextmanager
def noticed() -> Iterator[Notice]:
    """Within this block signals give notice; at its end the one that came has its usual effect.

    Handlers of the caller's stay in place, except that SIGTERM's is called at the end. Ignored
    signals stay ignored. Python handles signals in the main thread only.
    """
    notice = Notice()
    if threading.current_thread() is threading.main_thread():
        caught = _caught()
        for number, handler in [(number, signal.getsignal(number)) for number in _NOTICES]:
            # Python does not see handlers of other languages, such as faulthandler's.
            foreign = not callable(handler) and caught >> (number - 1) & 1
            own = handler == signal.SIG_DFL or (number == signal.SIGTERM and callable(handler))
            if own and not foreign:
                notice.before[number] = signal.signal(number, notice)
        if callable(signal.getsignal(signal.SIGINT)):
            notice.before[signal.SIGINT] = signal.signal(signal.SIGINT, notice.interrupt)
    try:
        yield notice
    finally:
        for number, handler in notice.before.items():
            signal.signal(number, handler)
        if notice.number is not None:
            _log.warning("the run ended because the process got %s", signal.Signals(notice.number).name)
            signal.raise_signal(notice.number)


def _caught() -> int:
    """The signals that the process handles, as bits; 0 where the system does not say."""
    with suppress(OSError), open("/proc/self/status", encoding="utf-8") as file:
        return next((int(line.split()[1], 16) for line in file if line.startswith("SigCgt")), 0)
    return 0
