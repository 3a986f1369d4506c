"""Signals wait until an update is complete, so that no weight is left halfway."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_HELD = ("SIGINT", "SIGCHLD", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


@contextmanager
def held_interrupts() -> Iterator[Callable[[], None]]:
    """Gives ``hold``: after it is called, Ctrl-C waits until the end of the block; before, it does not.

    A block inside another one shares its ``hold``: what was held is delivered when the outer block ends.
    Other signals that have a handler wait too: SIGTERM, and the death of a child process, at which a
    ``DataLoader`` raises an error. Python delivers them in the main thread only.

    >>> with held_interrupts() as hold:
    ...     hold()  # from here on Ctrl-C waits
    """
    numbers = [number for name in _HELD if (number := getattr(signal, name, None)) is not None]
    found = {number: signal.getsignal(number) for number in numbers}
    outer = found[signal.SIGINT]
    handlers: dict[int, Any] = {n: found[n] for n in found if n == signal.SIGINT or callable(found[n])}
    if outer is None or threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    if isinstance(outer, _Deferred):
        yield outer.hold
        return
    deferred = _Deferred(handlers)
    for number in handlers:
        signal.signal(number, deferred)
    try:
        yield deferred.hold
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        _deliver(sorted(deferred.kept))


def _deliver(numbers: list[int]) -> None:
    """Raise the signals, each one also where a handler before it raises an exception."""
    if numbers:
        try:
            signal.raise_signal(numbers[0])
        finally:
            _deliver(numbers[1:])


class _Deferred:
    """A signal handler that passes signals on, and keeps them once `hold` was called."""

    def __init__(self, handlers: dict[int, Any]) -> None:
        self.handlers, self.holding = handlers, False
        self.kept: set[int] = set()

    def hold(self) -> None:
        self.holding = True

    def __call__(self, number: int, frame: FrameType | None) -> None:
        handler = self.handlers[number]
        if self.holding or not callable(handler):
            self.kept.add(number)
        else:
            handler(number, frame)
