"""The batches of a loader, pass after pass, from the place where an earlier run left off."""

import logging
import random
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

import diva_rs._native as _native
from diva_rs.errors import DataError

_log = logging.getLogger("diva_rs")


class Feed:
    """A loader's batches and the place among them: ``epoch``, and the batches that were read of it.

    A loader with ``start_at(batches)`` and ``position``, as diva_rs's own, goes to a place without decoding
    what lies before it. Any other is read up to there. Such a loader's random numbers (torch's, NumPy's and
    random's global generators) are a function of the seed and the epoch while it is read, and nobody else's:
    a ``DataLoader(shuffle=True)`` gives the same order again.

    >>> feed = Feed([1, 2, 3], seed=0)
    >>> for batch in feed.read(0):
    ...     if batch == 2:
    ...         break
    >>> feed.place()
    {'epoch': 0, 'batches': 2}
    >>> list(Feed([1, 2, 3], seed=0, place=feed.place()).read(0))
    [3]
    """

    def __init__(self, loader: Iterable[Any], seed: int, place: dict[str, Any] | None = None) -> None:
        self.loader, self.seed = loader, seed
        self.own = callable(getattr(loader, "start_at", None)) and hasattr(loader, "position")
        self.epoch = int((place or {}).get("epoch", 0))
        self.batches = int((place or {}).get("batches", 0))
        self.waited = 0.0  # seconds for which training stood still for the loader, of this process
        self._generators = [(generator, generator.initial_seed()) for generator in _generators(loader)]
        if self.batches and not self.own and not isinstance(loader, (list, tuple)):
            _log.warning(
                "%d batches are read again and passed over; that they are the same as before is up to %s",
                self.batches,
                _described(loader),
            )

    def place(self) -> dict[str, Any]:
        """The place after the batch that was read last, as JSON values."""
        return {"epoch": self.epoch, "batches": self.batches}

    def read(self, epoch: int) -> Iterator[Any]:
        """The rest of a pass: all of it, but for the batches before the place that this feed was given."""
        passed = self.batches if epoch == self.epoch else 0
        self.epoch, self.batches = epoch, passed
        _set_epoch(self.loader, epoch)
        if self.own:
            loader: Any = self.loader
            if passed:
                loader.start_at(passed)
            for batch in self._timed(iter(loader)):
                self.batches = loader.position
                yield batch
            return
        streams = _Streams(_native.augment_seed(self.seed, epoch, epoch))
        for generator, seed in self._generators if epoch else ():
            # It would go on from pass to pass, and after a resume begin with the first.
            generator.manual_seed(_native.augment_seed(seed % 2**64, epoch, epoch))
        with streams.on():
            batches = iter(self.loader)
        for number, batch in enumerate(self._timed(streams.through(batches))):
            if number >= passed:
                self.batches = number + 1
                yield batch

    def _timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            before = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - before
            yield batch


def death_of_worker(err: BaseException) -> DataError | None:
    """What to say of an error by which torch tells that a ``DataLoader``'s worker died.

    It comes as the signal does, at any moment of the main thread, not only while a batch is awaited.

    >>> print(death_of_worker(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")))
    a worker of the loader died (DataLoader worker (pid 7) is killed by signal: Killed.): out of memory, ...
    """
    if not isinstance(err, RuntimeError) or "DataLoader worker" not in str(err):
        return None
    return DataError(
        f"a worker of the loader died ({err}): out of memory, or a crash in the code that reads the images; "
        "fewer workers need less memory"
    )


class _Streams:
    """The global random generators' states while a loader runs, apart from the caller's."""

    def __init__(self, seed: int) -> None:
        outer = self._get()
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        self.inner = self._get()
        self._set(outer)

    @staticmethod
    def _get() -> tuple[Any, ...]:
        return torch.get_rng_state(), random.getstate(), np.random.get_state()

    @staticmethod
    def _set(states: tuple[Any, ...]) -> None:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])

    @contextmanager
    def on(self) -> Iterator[None]:
        outer = self._get()
        self._set(self.inner)
        try:
            yield
        finally:
            self.inner = self._get()
            self._set(outer)

    def through(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            with self.on():
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            yield batch


def _generators(loader: Any) -> list[torch.Generator]:
    """A DataLoader's own random generators, and its samplers'."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    owners = (
        loader,
        getattr(loader, "sampler", None),
        batch_sampler,
        getattr(batch_sampler, "sampler", None),
    )
    found = {id(g): g for g in (getattr(owner, "generator", None) for owner in owners)}
    return [generator for generator in found.values() if isinstance(generator, torch.Generator)]


def _described(loader: Any) -> str:
    if isinstance(loader, DataLoader):
        return f"its dataset and sampler ({type(loader.dataset).__name__}, {type(loader.sampler).__name__})"
    return f"the loader ({type(loader).__name__})"


def _set_epoch(loader: Any, epoch: int) -> None:
    """Tell whatever shuffles or augments by epoch that a new pass begins."""
    for part in (loader, *(getattr(loader, name, None) for name in ("sampler", "batch_sampler", "dataset"))):
        hook = getattr(part, "set_epoch", None)
        if callable(hook):
            hook(epoch)
