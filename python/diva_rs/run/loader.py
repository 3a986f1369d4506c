"""Where a run stands, and its loader's batches from there, pass after pass."""

import hashlib
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
from diva_rs.data.batches import Batch, read_batch
from diva_rs.data.keys import sample_keys
from diva_rs.errors import ConfigError, DataError

_log = logging.getLogger("diva_rs")

_SAMPLED = 256  # values of an image that a print is made of
_KNOWN = 100_000  # ids of a pass that are compared


@dataclass(frozen=True)
class Progress:
    """Where a run stands, counted over all ranks. Written whole into every checkpoint.

    Attributes:
        epoch: passes over the data before this one.
        places: each rank's place in this pass: the samples that it has read, or the ``position`` of
            a loader that has one. Empty at the beginning of a pass.
        prints: of each rank a hash of what it has read in this pass; 0 where that is not known.
        seen: samples that were trained on in this pass.
        samples, steps: samples and optimizer steps of the whole run.
    """

    epoch: int = 0
    places: tuple[tuple[int, ...], ...] = ()
    prints: tuple[int, ...] = ()
    seen: int = 0
    samples: int = 0
    steps: int = 0


class ResumableLoader:
    """A loader whose passes can begin at any sample. ``waited`` are the seconds of waiting for it.

    A loader with ``start_at(position)`` and ``position``, as diva_rs's own, starts there without
    decoding what lies before. Any other one is read up to there, and a batch across the place is
    cut. While such a loader is read, the global random generators of torch, NumPy and ``random``
    are seeded from the seed and the epoch and used by nobody else, so a ``DataLoader(shuffle=True)``
    gives the same order again. So are its own generators, which have their state again afterwards.

    ``print`` is a hash of the samples of this pass: of their ids, else of their pixels. What is read
    again is compared with the print of that time. Other ids raise ConfigError where ``strict``; other
    pixels, which may be other crops of the same images, are warned of.

    >>> loader = ResumableLoader([torch.zeros(2, 3, 8, 8), torch.zeros(4, 3, 8, 8)], seed=0)
    >>> [(place, len(batch)) for place, batch in loader.read(epoch=0, place=(3,))]
    [((6,), 3)]
    """

    def __init__(self, loader: Iterable[Any], seed: int, strict: bool = True) -> None:
        self.loader, self.seed, self.waited = loader, seed, 0.0
        self.strict, self.print, self._twice = strict, 0, False
        self._skips = callable(getattr(loader, "start_at", None)) and hasattr(loader, "position")
        self._generators = [(each, each.initial_seed()) for each in generators_of(loader)]
        self._random: tuple[Any, ...] | None = None  # states of the global generators for the loader
        self._passes = 0  # that were begun

    @property
    def start(self) -> tuple[int, ...]:
        """The place at the beginning of a pass."""
        own: Any = self.loader
        return (0,) * (len(own.position) if self._skips else 1)

    def read(
        self, epoch: int, place: tuple[int, ...] = (), before: int = 0
    ) -> Iterator[tuple[tuple[int, ...], Batch]]:
        """The batches of a pass after ``place``, each with the place after it.

        ``before`` is the print of what lies before the place; 0 where that is not known.
        """
        loader: Any = self.loader
        for part in (loader, *samplers_of(loader), *datasets_of(loader)):
            if callable(getattr(part, "set_epoch", None)):
                part.set_epoch(epoch)
        self._check_workers()
        states = [generator.get_state() for generator, _ in self._generators]
        if not self._skips:
            self._seed(epoch)
            if any(place) and not isinstance(loader, (list, tuple)):
                text = "%d samples are read again and skipped; that they are the same depends on the loader"
                _log.warning(f"{text} (%s)", sum(place), type(loader).__name__)
        elif any(place):
            loader.start_at(place)
        try:
            yield from self._batches(sum(place), before)
        finally:
            for (generator, _), state in zip(self._generators, states, strict=True):
                generator.set_state(state)

    def _batches(self, passed: int, before: int) -> Iterator[tuple[tuple[int, ...], Batch]]:
        own: Any = self.loader
        with self._loading():
            if getattr(own, "_iterator", None) is not None:
                # Workers that stay alive had their seed in the first pass; a new loader draws it again.
                torch.empty((), dtype=torch.int64).random_(generator=getattr(own, "generator", None))
            batches = iter(own)
        read = number = self.print = 0
        known = set[bytes]()
        while True:
            try:
                with self._loading():
                    item = next(batches)
            except StopIteration:
                return
            batch = read_batch(item, number)
            number += 1
            if self._skips:
                yield self.loader.position, batch  # type: ignore[attr-defined]
                continue
            cut = min(len(batch), max(0, passed - read))
            marks = _marks(batch)
            if batch.ids is not None:
                self._note_ids(batch.ids, marks, known)
            self.print = _hashed(self.print, marks[:cut])
            if cut and read + cut == passed and self.print and before not in (0, self.print):
                self._report_others(passed, batch.ids is not None)
            self.print = _hashed(self.print, marks[cut:])
            read += len(batch)
            if read > passed:
                yield (read,), batch[cut:] if cut else batch

    def _note_ids(self, ids: Any, marks: list[bytes], known: set[bytes]) -> None:
        """Warn once of an id that comes twice in a pass; ``known`` are the first ones of the pass."""
        for key, mark in zip(ids, marks, strict=False):
            if mark in known and not self._twice:
                self._twice = True
                _log.warning(
                    "the id %s comes twice in a pass: both samples get the same draws. Different images need "
                    "different ids (keys of shards: put the shard's name before them)",
                    key.item() if isinstance(key, torch.Tensor) else key,
                )
            if len(known) < _KNOWN:
                known.add(mark)

    def _report_others(self, passed: int, by_ids: bool) -> None:
        name = type(self.loader).__name__
        text = f"the loader ({name}) does not give the {passed} samples again that this pass has read: some "
        if by_ids and self.strict:
            raise ConfigError(
                f"{text}images would come twice and others never. Give the same data, in an order that "
                "the seeds of torch, NumPy and random decide (webdataset's shuffle goes by the time: "
                'shard_loader reads its shards), or resume="force", which continues all the same'
            )
        _log.warning("%simages may come twice and others never, unless only their crops differ", text)

    def _check_workers(self) -> None:
        """Warn where a new epoch cannot reach the workers that are alive."""
        self._passes += 1
        if self._passes != 2 or not getattr(self.loader, "persistent_workers", False):
            return
        for data in datasets_of(self.loader):
            values = getattr(data, "__dict__", {}).values()
            shared = any(isinstance(v, torch.Tensor) and v.is_shared() for v in values)  # type: ignore[no-untyped-call]
            if callable(getattr(data, "set_epoch", None)) and not shared:
                _log.warning(
                    "set_epoch does not reach the %s of the loader's workers, so passes may show the same "
                    "order and crops; give persistent_workers=False",
                    type(data).__name__,
                )

    def _seed(self, epoch: int) -> None:
        for generator, seed in self._generators:
            # Its state depends on all passes before; after a resume there were none.
            generator.manual_seed(_native.augment_seed(seed % 2**64, epoch, epoch) if epoch else seed)
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


def _marks(batch: Batch) -> list[bytes]:
    """For each sample, what distinguishes it from others; empty where pixels are on a device."""
    if batch.ids is not None:
        try:
            return [key.tobytes() for key in sample_keys(batch.ids)]
        except DataError:  # the step names the id
            return []
    parts = (batch.images, batch.pixel_values, batch.latents)
    values = next(part for part in parts if part is not None).detach().flatten(1)
    if values.device.type != "cpu":
        return []
    some = values[:, :: max(1, values.shape[1] // _SAMPLED)].float().numpy()
    return [row.tobytes() for row in some]


def _hashed(start: int, marks: list[bytes]) -> int:
    """63 bits of a hash of what came before and of further samples."""
    for mark in marks:
        digest = hashlib.blake2b(start.to_bytes(8, "little") + mark, digest_size=8).digest()
        start = int.from_bytes(digest, "little") >> 1
    return start


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


def datasets_of(loader: Any) -> list[Any]:
    """The dataset of a loader and those within it, as of a ``Subset`` or a ``ConcatDataset``."""
    owners = [loader]
    for owner in owners:
        many = getattr(owner, "datasets", ())
        many = many.values() if isinstance(many, dict) else many if isinstance(many, (list, tuple)) else ()
        for inner in (getattr(owner, "dataset", None), *many):
            if inner is not None and all(inner is not known for known in owners):
                owners.append(inner)
    return owners[1:]


def generators_of(loader: Any) -> list[torch.Generator]:
    """The random generators of a DataLoader and of its samplers."""
    owned = [getattr(owner, "generator", None) for owner in (loader, *samplers_of(loader))]
    return list({id(each): each for each in owned if isinstance(each, torch.Generator)}.values())


def length_of(data: Any) -> int | None:
    """The length of a loader or a dataset; None where it has none."""
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None
