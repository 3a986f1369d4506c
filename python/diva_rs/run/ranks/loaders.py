"""Loaders over several ranks: each rank must read its own images."""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from diva_rs.data.batches import Batch
from diva_rs.data.latent_cache import CachedLoader
from diva_rs.data.loader import ImageLoader, KeyedSampler
from diva_rs.distributed import Ranks
from diva_rs.errors import DataError
from diva_rs.run.loader import length_of, samplers_of

_WAYS = (
    "give a DataLoader a torch.utils.data.DistributedSampler, prepare it with accelerate, use "
    "diva_rs.data.folder_loader or shard_loader, or give each rank an iterable of its own images"
)


def check_divided(loader: Any, ranks: Ranks) -> None:
    """Raise DataError where every rank would read all images, or has no shard. Of an iterable that is no
    DataLoader nothing is known before it is read: see `check_first_batches`.
    """
    loader = _without_cache(loader)
    shards = getattr(loader.dataset, "shards", None) if isinstance(loader, ImageLoader) else None
    if shards is not None and len(shards) < ranks.world:
        text = "each rank reads whole shards: write smaller ones, or start fewer ranks"
        raise DataError(f"{loader.dataset!r} on {ranks.world} ranks: {text}")
    whole = isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)
    if ranks.world > 1 and whole and not is_divided(loader):
        raise DataError(f"on {ranks.world} ranks each one would read all images of the loader: {_WAYS}")


def check_first_batches(batch: Batch | None, ranks: Ranks) -> None:
    """Raise DataError where all ranks read the same first batch. To be called by all ranks."""
    prints = ranks.facts(None if batch is None else _fingerprint(batch))
    if ranks.world > 1 and prints[0] is not None and prints.count(prints[0]) == ranks.world:
        raise DataError(f"all {ranks.world} ranks read the same first batch: {_WAYS}")


def is_divided(loader: DataLoader[Any]) -> bool:
    """Whether a DataLoader reads this rank's part of its dataset."""
    parts = samplers_of(loader)
    # accelerate's BatchSamplerShard has the first, a sampler like torch's the second; a loader that
    # accelerate has prepared has the last.
    marked = any(hasattr(part, mark) for part in parts for mark in ("process_index", "num_replicas"))
    known = any(isinstance(part, KeyedSampler) for part in parts)
    return marked or known or bool(getattr(loader, "_is_accelerate_prepared", False))


def steps_of_one_pass(loader: Any, batch: int | None, ranks: Ranks) -> int | None:
    """Optimizer steps of one pass at the recipe's ``batch``, on all ranks; None where a length is unknown."""
    own = length_of(loader)
    lengths = [row[0] for row in ranks.numbers(-1 if own is None else own)]
    if not any(lengths):
        raise DataError("the loader is empty: it has length 0")
    if batch is None and min(lengths) >= 0:
        return max(lengths)
    samples: int | None = getattr(loader, "batch_size", None)
    if min(lengths) < 0 or batch is None or samples is None:
        return None
    # A step ends with the round of loader batches, one per rank, that fills it.
    accumulated = math.ceil(batch / (samples * ranks.world)) * samples * ranks.world
    images = length_of(getattr(loader, "dataset", None))
    seen = sum(lengths) * samples  # the last batch may be smaller
    return math.ceil((seen if images is None else min(seen, images)) / accumulated)


def places_on(
    loader: Any, places: tuple[tuple[int, ...], ...], world: int
) -> tuple[tuple[int, ...], ...] | None:
    """Where each of ``world`` ranks continues the pass in which other ranks stood at ``places``. None where
    what they read is not the beginning of the order in which ``loader`` deals images out to the ranks.
    """
    loader = _without_cache(loader)
    if len(places) in (0, world):
        return places
    if any(len(place) != 1 for place in places):
        return None  # of shards
    total = sum(read for (read,) in places)
    if isinstance(loader, ImageLoader):
        same = places == _turns(total, len(places))
    else:  # turns may be samples or batches: after equally many of both they are one
        size = getattr(loader, "batch_size", None)
        same = size is not None and total % (size * world) == 0 and len(set(places)) == 1
        same = same and isinstance(loader, DataLoader) and is_divided(loader)
    return _turns(total, world) if same else None


def _turns(total: int, world: int) -> tuple[tuple[int, ...], ...]:
    return tuple((len(range(rank, total, world)),) for rank in range(world))


@contextmanager
def every_image(loader: Any, ranks: Ranks) -> Iterator[None]:
    """Within this block our own sampler leaves out no image, though some ranks then read one more.

    A run weighs the ranks by their samples, so they need not be even.
    """
    sampler = getattr(_without_cache(loader), "sampler", None)
    if ranks.world == 1 or not isinstance(sampler, KeyedSampler):
        yield
        return
    sampler.even = False
    try:
        yield
    finally:
        sampler.even = True


def _without_cache(loader: Any) -> Any:
    return loader.loader if isinstance(loader, CachedLoader) else loader


def _fingerprint(batch: Batch) -> list[str]:
    """The ids of a batch, or a hash of its pixels."""
    if batch.ids is not None:
        return [str(key) for key in (batch.ids.tolist() if hasattr(batch.ids, "tolist") else batch.ids)]
    pixels = batch.source("clip")[0].detach().cpu().contiguous()
    return [hashlib.sha256(pixels.view(torch.uint8).numpy().tobytes()).hexdigest()]
