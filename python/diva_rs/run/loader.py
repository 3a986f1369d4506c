"""Where a run stands, and its loader's batches from there, pass after pass."""

import logging
import random
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

import diva_rs._native as _native
from diva_rs.errors import DataError

_log = logging.getLogger("diva_rs")


@dataclass(frozen=True)
class Progress:
    """Where a run stands, counted over all ranks. Written whole into every checkpoint.

    Attributes:
        epoch: passes over the data before this one.
        batches, seen: batches and samples that were read in this pass.
        samples, steps: samples and optimizer steps of the whole run.
    """

    epoch: int = 0
    batches: int = 0
    seen: int = 0
    samples: int = 0
    steps: int = 0


class ResumableLoader:
    """A loader whose passes can begin after any number of batches.

    A loader with ``start_at(batches)`` and ``position``, as diva_rs's own, starts there without
    decoding what lies before. Any other one is read up to there. While such a loader is read, the
    global random generators of torch, NumPy and ``random`` are seeded from the seed and the epoch
    and used by nobody else, so a ``DataLoader(shuffle=True)`` gives the same order again.

    Attributes:
        epoch, batches: the pass, and the batches of it that were read.
        waited: seconds in which training waited for the loader, in this process.

    >>> loader = ResumableLoader([1, 2, 3], seed=0, batches=2)
    >>> list(loader.read(epoch=0)), list(loader.read(epoch=1))
    ([3], [1, 2, 3])
    """

    def __init__(self, loader: Iterable[Any], seed: int, epoch: int = 0, batches: int = 0) -> None:
        self.loader, self.seed, self.epoch, self.batches = loader, seed, epoch, batches
        self.waited = 0.0
        self._skips = callable(getattr(loader, "start_at", None)) and hasattr(loader, "position")
        self._generators = [(generator, generator.initial_seed()) for generator in _generators(loader)]
        if batches and not self._skips and not isinstance(loader, (list, tuple)):
            _log.warning(
                "%d batches are read again and skipped; that they are the same as before depends on %s",
                batches,
                _described(loader),
            )

    def read(self, epoch: int) -> Iterator[Any]:
        """The batches of a pass, without those that were read before."""
        passed = self.batches if epoch == self.epoch else 0
        self.epoch, self.batches = epoch, passed
        _set_epoch(self.loader, epoch)
        if self._skips:
            loader: Any = self.loader
            if passed:
                loader.start_at(passed)
            for batch in self._timed(iter(loader)):
                self.batches = loader.position
                yield batch
            return
        streams = _RandomStreams(_native.augment_seed(self.seed, epoch, epoch))
        for generator, seed in self._generators if epoch else ():
            # Its state depends on all passes before; after a resume there were none.
            generator.manual_seed(_native.augment_seed(seed % 2**64, epoch, epoch))
        with streams.used():
            batches = iter(self.loader)
        for number, batch in enumerate(self._timed(batches, streams)):
            if number >= passed:
                self.batches = number + 1
                yield batch

    def _timed(self, batches: Iterator[Any], streams: "_RandomStreams | None" = None) -> Iterator[Any]:
        while True:
            before = time.perf_counter()
            try:
                with nullcontext() if streams is None else streams.used():
                    batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - before
            yield batch


def death_of_worker(err: BaseException) -> DataError | None:
    """A DataError for torch's error about a dead ``DataLoader`` worker; None for any other error.

    Torch raises it when the signal arrives, at any moment of the main thread.

    >>> print(death_of_worker(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")))
    a worker of the loader died (DataLoader worker (pid 7) is killed by signal: Killed.): out of memory, ...
    """
    if not isinstance(err, RuntimeError) or "DataLoader worker" not in str(err):
        return None
    return DataError(
        f"a worker of the loader died ({err}): out of memory, or a crash in the code that reads the images; "
        "fewer workers need less memory"
    )


class _RandomStreams:
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
    def used(self) -> Iterator[None]:
        outer = self._get()
        self._set(self.inner)
        try:
            yield
        finally:
            self.inner = self._get()
            self._set(outer)


def _generators(loader: Any) -> list[torch.Generator]:
    """The random generators of a DataLoader and of its samplers."""
    samplers = (getattr(loader, name, None) for name in ("sampler", "batch_sampler"))
    owners = [loader, *samplers, getattr(getattr(loader, "batch_sampler", None), "sampler", None)]
    found = {id(g): g for g in (getattr(owner, "generator", None) for owner in owners)}
    return [generator for generator in found.values() if isinstance(generator, torch.Generator)]


def _described(loader: Any) -> str:
    if isinstance(loader, DataLoader):
        return f"its dataset and sampler ({type(loader.dataset).__name__}, {type(loader.sampler).__name__})"
    return f"the loader ({type(loader).__name__})"


def _set_epoch(loader: Any, epoch: int) -> None:
    """Call ``set_epoch`` of every part that shuffles or augments by epoch."""
    for part in (loader, *(getattr(loader, name, None) for name in ("sampler", "batch_sampler", "dataset"))):
        hook = getattr(part, "set_epoch", None)
        if callable(hook):
            hook(epoch)
