"""Each rank its own images: which batches of the user's loader this rank reads."""

import copy
import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate, chain
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from diva_rs.data.batches import Batch, read_batch
from diva_rs.data.latent_cache import CachedLoader
from diva_rs.data.loader import ImageLoader, KeyedSampler
from diva_rs.distributed.ranks import Ranks
from diva_rs.errors import DataError

_log = logging.getLogger("diva_rs")


def split(loader: Any, ranks: Ranks) -> Any:
    """The part of ``loader`` that this rank is to train on; the loader itself where there is one rank alone.

    * ``folder_loader`` and ``shard_loader`` share out images and shards themselves.
    * Of a torch ``DataLoader`` over a map-style dataset, batch i is rank i mod K's, in the order of rank 0's
      sampler: no rank decodes another's images. Where its sampler is a ``DistributedSampler`` (or
      accelerate's), it is taken as it is.
    * Of any other iterable the first batches are compared: are they the same on every rank, then the ranks
      take turns (and every rank reads all of them); otherwise each rank is taken to have its own.

    Samples without ids are numbered as one rank would number them wherever the order is known.

    >>> loader = [torch.zeros(1, 3, 8, 8)]
    >>> split(loader, Ranks()) is loader
    True
    """
    if ranks.world == 1:
        return loader
    if isinstance(loader, CachedLoader):
        return CachedLoader(loader.cache, split(loader.loader, ranks))
    if isinstance(loader, ImageLoader):
        _check_shards(loader, ranks)
        return _Own(loader)
    if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset):
        return _Own(loader) if _divided(loader) else _Divided(loader, ranks)
    return _Turns(loader, ranks)


class _Part:
    """What this rank reads of a loader. Its other attributes are the loader's own."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)  # set_epoch, batch_size, dataset, ...


class _Own(_Part):
    """A loader that gives each rank its own images. An image that is left over goes to one of them."""

    def __iter__(self) -> Iterator[Any]:
        with _uneven(self.loader):
            yield from self.loader

    def __len__(self) -> int:
        with _uneven(self.loader):
            return len(self.loader)


class _Divided(_Part):
    """Every K-th batch of a DataLoader, divided before anything is read."""

    def __init__(self, loader: DataLoader[Any], ranks: Ranks) -> None:
        super().__init__(loader)
        batched = loader.batch_sampler is not None
        self._order = _Order(loader.batch_sampler if batched else loader.sampler, batched, ranks)
        # DataLoader refuses to be given another order, but a copy with another order is what is wanted here:
        # it keeps workers, collation and everything else.
        self._part = copy.copy(loader)
        self._part.__dict__.update(
            {"batch_sampler" if batched else "sampler": self._order, "_iterator": None}
        )

    def __iter__(self) -> Iterator[Any]:
        for number, item in enumerate(self._part):
            start = self._order.start(number)
            yield item if start is None else _numbered(read_batch(item, number), start)

    def __len__(self) -> int:
        return len(self._order)


class _Order:
    """A sampler's order as rank 0 sees it, and of that every K-th entry."""

    def __init__(self, sampler: Any, batched: bool, ranks: Ranks) -> None:
        self.sampler, self.batched, self.ranks = sampler, batched, ranks
        self._starts: list[int] = []  # of every batch of the pass: the samples before it

    def start(self, number: int) -> int | None:
        """The samples before this rank's batch ``number``, on all ranks; None where batches are not known."""
        return self._starts[number * self.ranks.world + self.ranks.rank] if self.batched else None

    def __iter__(self) -> Iterator[Any]:
        ranks, entries = self.ranks, None
        if ranks.first:  # a sampler may draw from any generator: the others take its word
            entries = [list(batch) if self.batched else [batch] for batch in self.sampler]
            for index in chain.from_iterable(entries):
                if isinstance(index, bool) or not isinstance(index, Integral):
                    raise DataError(
                        f"the loader's sampler gives {index!r}: over several ranks it must give whole "
                        "numbers, or be a torch DistributedSampler"
                    )
        lengths = ranks.from_first(None if entries is None else [len(batch) for batch in entries])
        indices = ranks.from_first(None if entries is None else [*map(int, chain.from_iterable(entries))])
        starts = [0, *accumulate(lengths)]
        self._starts = starts[:-1]
        for batch in range(ranks.rank, len(lengths), ranks.world):
            part = indices[starts[batch] : starts[batch + 1]]
            yield part if self.batched else part[0]

    def __len__(self) -> int:
        return len(range(self.ranks.rank, len(self.sampler), self.ranks.world))


class _Turns(_Part):
    """A loader that nothing is known of: its batches in turn, if every rank has the same ones."""

    def __init__(self, loader: Any, ranks: Ranks) -> None:
        super().__init__(loader)
        self.ranks = ranks
        first, items = _peek(loader)
        # An iterator cannot be read twice: what was taken from it is given back once.
        self._taken: Iterator[Any] | None = items if items is loader else None
        self._first = [] if first is None else [first]
        prints = ranks.facts(_print(first))
        self.turns = prints[0] is not None and prints.count(prints[0]) == ranks.world
        if ranks.first:
            what = f"the loader is a {type(loader).__name__}"
            _log.warning(
                "%s, the same on all %d ranks: they take turns, and each reads all of it. Of a DataLoader "
                "over a map-style dataset, a folder_loader or a shard_loader each would read its part alone"
                if self.turns
                else "%s that gives each of the %d ranks other batches: each trains on its own",
                what,
                ranks.world,
            )

    def __iter__(self) -> Iterator[Any]:
        if self._taken is None:
            items = iter(self.loader)
        else:
            items, self._first = chain(self._first, self._taken), []
        start = 0
        for number, item in enumerate(items):
            if not self.turns:
                yield item
                continue
            batch = read_batch(item, number)
            if number % self.ranks.world == self.ranks.rank:
                yield _numbered(batch, start)
            start += len(batch)

    def __len__(self) -> int:
        length = len(self.loader)
        return len(range(self.ranks.rank, length, self.ranks.world)) if self.turns else length


def length_of(loader: Any, ranks: Ranks) -> tuple[int, int] | None:
    """Of a pass over what `split` gave: the most batches that a rank reads, and those of all ranks together.

    None where a rank does not know. To be called by all ranks.

    >>> length_of([1, 2, 3], Ranks())
    (3, 3)
    """
    try:
        own = len(loader)
    except (TypeError, NotImplementedError):
        own = -1
    rows = [row[0] for row in ranks.numbers(own)]
    return None if min(rows) < 0 else (max(rows), sum(rows))


def _numbered(batch: Batch, start: int) -> Batch:
    """The batch with the ids that one rank alone would have given its samples."""
    return batch if batch.ids is not None else replace(batch, ids=np.arange(start, start + len(batch)))


def _divided(loader: DataLoader[Any]) -> bool:
    """Whether a DataLoader reads this rank's part already."""
    batches = loader.batch_sampler
    parts = (loader.sampler, batches, getattr(batches, "sampler", None))
    known = any(isinstance(part, (DistributedSampler, KeyedSampler)) for part in parts)
    # accelerate's BatchSamplerShard, and its own mark on loaders that `prepare` has seen
    sharded = any(hasattr(part, "process_index") or hasattr(part, "num_replicas") for part in parts)
    return known or sharded or bool(getattr(loader, "_is_accelerate_prepared", False))


def _check_shards(loader: ImageLoader, ranks: Ranks) -> None:
    shards = getattr(loader.dataset, "shards", None)
    if shards is not None and len(shards) < ranks.world:
        raise DataError(
            f"{loader.dataset!r} for {ranks.world} ranks: each reads shards of its own, so that at least "
            f"{ranks.world} are needed; write smaller shards, or start fewer ranks"
        )


@contextmanager
def _uneven(loader: Any) -> Iterator[None]:
    """Within this block an image that is left over is not left out: `post_train` weighs the ranks."""
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, KeyedSampler):
        yield
        return
    sampler.even = False
    try:
        yield
    finally:
        sampler.even = True


def _peek(loader: Any) -> tuple[Any, Iterator[Any]]:
    items = iter(loader)
    return next(items, None), items


def _print(item: Any) -> list[Any] | None:
    """What tells batches apart: their ids, or else their first tensor's shape and values."""
    if item is None:
        return None
    batch = read_batch(item, 0)
    if batch.ids is not None:
        return [str(key) for key in (batch.ids.tolist() if hasattr(batch.ids, "tolist") else batch.ids)]
    pixels = batch.images if batch.images is not None else batch.pixel_values
    assert pixels is not None  # read_batch gives one of the two
    host = pixels.detach().cpu().contiguous()
    return [*host.shape, hashlib.sha256(host.view(torch.uint8).numpy().tobytes()).hexdigest()]
