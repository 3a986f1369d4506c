"""Where a run stands, and its loader's batches from there, pass after pass."""

import logging
import random
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

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
        waited: seconds in which training waited for the loader, in this process.

    >>> list(ResumableLoader(["a", "b", "c"], seed=0).read(epoch=0, passed=1))
    [(2, 'b'), (3, 'c')]
    """

    def __init__(self, loader: Iterable[Any], seed: int) -> None:
        self.loader, self.seed, self.waited = loader, seed, 0.0
        self._skips = callable(getattr(loader, "start_at", None)) and hasattr(loader, "position")
        self._generators = [(generator, generator.initial_seed()) for generator in _generators(loader)]
        self._random: tuple[Any, ...] | None = None  # states of the global generators for the loader

    def read(self, epoch: int, passed: int = 0) -> Iterator[tuple[int, Any]]:
        """The batches of a pass after the first ``passed``, each with its number, counted from 1."""
        loader: Any = self.loader
        parts = (getattr(loader, name, None) for name in ("sampler", "batch_sampler", "dataset"))
        for part in (loader, *parts):
            if callable(getattr(part, "set_epoch", None)):
                part.set_epoch(epoch)
        if self._skips and passed:
            loader.start_at(passed)
        if not self._skips:
            self._seed(epoch)
            if passed and not isinstance(loader, (list, tuple)):
                _log.warning(
                    "%d batches are read again and skipped; that they are the same as before depends on %s",
                    *(passed, _described(loader)),
                )
        with self._loading():
            batches = iter(loader)
        number = 0
        while True:
            try:
                with self._loading():
                    batch = next(batches)
            except StopIteration:
                return
            number = loader.position if self._skips else number + 1
            if number > passed:
                yield number, batch

    def _seed(self, epoch: int) -> None:
        for generator, seed in self._generators if epoch else ():
            # Its state depends on all passes before; after a resume there were none.
            generator.manual_seed(_native.augment_seed(seed % 2**64, epoch, epoch))
        seed = _native.augment_seed(self.seed, epoch, epoch)
        outer = _swap_random_states()
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        self._random = _swap_random_states(outer)

    @contextmanager
    def _loading(self) -> Iterator[None]:
        """Around the loader's own code: counts its time, and gives it its random states."""
        before = time.perf_counter()
        outer = None if self._random is None else _swap_random_states(self._random)
        try:
            yield
        finally:
            if outer is not None:
                self._random = _swap_random_states(outer)
            self.waited += time.perf_counter() - before


def death_of_worker(err: BaseException) -> DataError | None:
    """A DataError for torch's error about a dead ``DataLoader`` worker; None for any other error.

    Torch raises it when the signal arrives, at any moment of the main thread.
    """
    if not isinstance(err, RuntimeError) or "DataLoader worker" not in str(err):
        return None
    return DataError(
        f"a worker of the loader died ({err}): out of memory, or a crash in the code that reads the images; "
        "fewer workers need less memory"
    )


def _swap_random_states(states: tuple[Any, ...] | None = None) -> tuple[Any, ...]:
    """The states of the global generators of torch, ``random`` and NumPy; sets them where given."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    if states is not None:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])
    return before


def samplers_of(loader: Any) -> list[Any]:
    """The samplers of a DataLoader; None in place of one that is missing."""
    batches = getattr(loader, "batch_sampler", None)
    return [getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)]


def _generators(loader: Any) -> list[torch.Generator]:
    """The random generators of a DataLoader and of its samplers."""
    owned = [getattr(owner, "generator", None) for owner in (loader, *samplers_of(loader))]
    return list({id(each): each for each in owned if isinstance(each, torch.Generator)}.values())


def _described(loader: Any) -> str:
    dataset, sampler = getattr(loader, "dataset", None), getattr(loader, "sampler", None)
    if dataset is None:
        return f"the loader ({type(loader).__name__})"
    return f"its dataset and sampler ({type(dataset).__name__}, {type(sampler).__name__})"
