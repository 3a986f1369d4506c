"""Ctrl-C waits until an update is complete, so that no weight is left halfway."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def held_interrupts() -> Iterator[Callable[[], None]]:
    """Gives ``hold``: after it is called, Ctrl-C waits until the end of the block; before, it does not.

    A block inside another one shares its ``hold``: what was held is delivered when the outer block ends.
    The death of a child process waits too where a handler is set: a ``DataLoader`` raises an error then.
    Python delivers both in the main thread only.

    >>> with held_interrupts() as hold:
    ...     hold()  # from here on Ctrl-C waits
    """
    handlers: dict[int, Any] = {signal.SIGINT: signal.getsignal(signal.SIGINT)}
    if hasattr(signal, "SIGCHLD") and callable(signal.getsignal(signal.SIGCHLD)):
        handlers[signal.SIGCHLD] = signal.getsignal(signal.SIGCHLD)
    outer = handlers[signal.SIGINT]
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
        for number in sorted(deferred.kept):
            signal.raise_signal(number)


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
