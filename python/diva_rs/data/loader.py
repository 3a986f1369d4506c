"""The loader behind folders and shards: batches, shuffling by key, and what happens to images that cannot be
read."""

import hashlib
import logging
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from diva_rs._base.arguments import checked, described, takes
from diva_rs._base.kinds import EPOCH, SEED, instance, tensor
from diva_rs._base.settings import flag, hint, integer, optional
from diva_rs._base.world import rank_and_world
from diva_rs.data.decode import BadImage
from diva_rs.errors import ConfigError, DataError, shown

logger = logging.getLogger("diva_rs.data")

_SAMPLE = {"images": tensor("(3, H, W)"), "ids": integer(-(1 << 63), (1 << 63) - 1)}
_LOADING = {"prefetch": optional(integer(1, 1 << 31)), "pin_memory": flag()}
_WORKERS = 1024  # far more processes than a machine takes
BAD_IMAGE_POLICIES = ("raise", "skip")


class Passed:
    """In the place of a sample that an earlier run has used: nothing was decoded."""


def collate(samples: Sequence[Any]) -> dict[str, Any]:
    """Stack samples ``dict(images=(3, H, W), ids=int)`` into ``dict(images=(B, 3, H, W), ids=(B,) int64)``.

    ``BadImage`` entries are left out and listed under ``"bad"``; a batch of nothing else holds ``"bad"``
    alone. Raises DataError where the images differ in size.

    >>> batch = collate([{"images": torch.zeros(3, 2, 2), "ids": 5}, BadImage("b.jpg", "truncated")])
    >>> tuple(batch["images"].shape), batch["ids"].tolist(), [str(bad) for bad in batch["bad"]]
    ((1, 3, 2, 2), [5], ['b.jpg (truncated)'])
    """
    if not isinstance(samples, (list, tuple)):
        raise DataError(f"samples={described(samples)}: a list of samples is needed")
    good = [_sample(sample) for sample in samples if not isinstance(sample, (BadImage, Passed))]
    bad = [sample for sample in samples if isinstance(sample, BadImage)]
    batch: dict[str, Any] = {"bad": bad} if bad else {}
    if good:
        shapes = sorted({tuple(sample["images"].shape) for sample in good})
        if len(shapes) > 1:
            raise DataError(
                f"images of one batch differ in size, {shapes}: the transform must crop to one size"
            )
        batch["images"] = torch.stack([sample["images"] for sample in good])
        batch["ids"] = torch.tensor([sample["ids"] for sample in good], dtype=torch.int64)
    return batch


def _sample(sample: Any) -> dict[str, Any]:
    if not isinstance(sample, Mapping) or not {"images", "ids"} <= sample.keys():
        raise DataError(f"a sample is {described(sample)}: dict(images=(3, H, W), ids=int) is needed")
    return {name: checked(name, sample[name], kind) for name, kind in _SAMPLE.items()}


class KeyedSampler(Sampler[int]):
    """The order of one epoch: samples sorted by a hash of (seed, epoch, id), so it is a function of these
    alone.

    With ``torch.distributed`` running, each rank gets every world-th sample, all ranks equally many (the
    remainder of an epoch is left out; it is another one each epoch). `post_train`, which weighs the ranks,
    sets ``even`` to False: then nothing is left out.

    >>> sampler = KeyedSampler(np.arange(6), seed=0)
    >>> sorted(sampler) == list(range(6)) and list(sampler) == list(sampler)
    True
    """

    @takes(seed=SEED, shuffle=flag())
    def __init__(self, ids: np.ndarray[Any, Any], seed: int, shuffle: bool = True) -> None:
        if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ConfigError(f"ids={described(ids)}: an array (N,) of whole numbers is needed")
        self.ids, self.seed, self.shuffle, self.epoch = ids.astype(np.uint64), seed, shuffle, 0
        self.start = 0  # samples of this rank that the next iteration leaves out
        self.even = True

    @takes(epoch=EPOCH)
    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        keys = scramble(self.ids, self.seed, self.epoch) if self.shuffle else np.arange(len(self.ids))
        order = np.argsort(keys, kind="stable")
        rank, world = rank_and_world()
        if self.even:
            order = order[: len(self) * world]
        yield from order[rank::world][self.start :].tolist()

    def __len__(self) -> int:
        rank, world = rank_and_world()
        return len(self.ids) // world if self.even else len(range(rank, len(self.ids), world))


class ImageLoader:
    """Batches ``dict(images (B, 3, H, W) in [0, 1], ids (B,) int64)`` of one epoch per iteration.

    ``set_epoch(e)`` chooses the order and the crops; iterating twice at one epoch gives the same batches
    twice, for any number of workers. ``bad`` maps the name of each image that was skipped to the reason.

    ``loading``: how it is read, as of `folder_loader`.

    ``position`` counts the batches that were read in this epoch, ``start_at(position)`` makes the next
    iteration begin after as many, without decoding what lies before.
    """

    @takes(
        dataset=instance(Dataset, "a torch.utils.data.Dataset of samples"),
        sampler=optional(instance(KeyedSampler, "a KeyedSampler")),
        batch=integer(1, 1 << 31),
        workers=integer(0, _WORKERS),
    )
    def __init__(
        self,
        dataset: Dataset[Any],
        batch: int,
        workers: int,
        on_bad_image: str = "raise",
        sampler: KeyedSampler | None = None,
        **loading: Any,
    ) -> None:
        more = _loading(loading, workers)
        self.on_bad_image = checked_policy(on_bad_image)
        self.dataset, self.sampler, self.batch_size, self.bad = dataset, sampler, batch, dict[str, str]()
        self.position = 0
        self._start = 0
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=batch,
            sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            **more,
        )

    @takes(epoch=EPOCH)
    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration runs: its order and its crops."""
        for part in (self.dataset, self.sampler):
            if part is not None and hasattr(part, "set_epoch"):
                part.set_epoch(epoch)

    @property
    def views(self) -> Any:
        """The fixed `Views` of the images; None where every epoch shows a new crop, or all the same."""
        return getattr(self.dataset, "views", None)

    def every_view(self) -> Iterator[dict[str, Any]]:
        """The batches of one epoch for each view of the images: what a latent cache is built from."""
        if self.views is None:
            yield from self
            return
        dataset: Any = self.dataset
        try:
            for number in range(len(self.views)):
                dataset.shown = number
                yield from self
        finally:
            dataset.shown = None

    @takes(position=integer(0))
    def start_at(self, position: int) -> None:
        """Make the next iteration go on after ``position`` batches of the epoch."""
        self._start = position

    def __len__(self) -> int:
        if isinstance(self.dataset, IterableDataset):
            raise TypeError("the number of images in shards is not known before they are read")
        return len(self._loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if hasattr(self.dataset, "share"):
            self.dataset.share = rank_and_world()  # as this process knows it: a worker may not
        start, self._start = self._start, 0
        good, self.position = start, 0
        for batch in self._batches(start):
            self.position += 1
            if self.position <= start:
                continue
            for bad in batch.pop("bad", ()):
                self._note(bad)
            if batch:  # a batch of bad images alone is passed over
                good += len(batch["ids"])
                yield batch
        if not good and rank_and_world()[1] == 1:  # one of several ranks may have no part in it
            skipped = f": all {len(self.bad)} were bad, {_few(self.bad)}" if self.bad else ""
            raise DataError(f"{self.dataset} gave no image{skipped}")

    def _batches(self, start: int) -> Iterator[dict[str, Any]]:
        """The epoch's batches; the first ``start`` are empty, or were cheap to make."""
        if self.sampler is not None:
            self.sampler.start = start * self.batch_size
            try:
                batches = iter(self._loader)
                for _ in range(start):
                    yield {}
                yield from batches
            finally:
                self.sampler.start = 0
            return
        if hasattr(self.dataset, "start"):
            workers = max(1, self._loader.num_workers)
            # The workers take turns; one that has run dry leaves its turns to the others, so that these are
            # the batches that a worker has given at least.
            self.dataset.start = [
                self.batch_size * len(range(worker, start, workers)) for worker in range(workers)
            ]
        yield from self._loader

    def _note(self, bad: BadImage) -> None:
        if self.on_bad_image == "raise":
            raise bad.error()
        if bad.name not in self.bad:
            self.bad[bad.name] = bad.reason
            logger.warning("skipped bad image %s; %d so far", bad, len(self.bad))


def _loading(given: dict[str, Any], workers: int) -> dict[str, Any]:
    """What a `DataLoader` takes for the ``loading`` arguments of the loaders: see `folder_loader`."""
    for name in given.keys() - _LOADING.keys():
        near = hint(name, _LOADING) or f": there are {', '.join(_LOADING)}"
        raise ConfigError(f"a loader has no argument {shown(name)}{near}")
    found = {name: checked(name, value, _LOADING[name]) for name, value in given.items()}
    prefetch = found.get("prefetch")
    if prefetch is not None and workers == 0:
        raise ConfigError(
            f"prefetch={prefetch} with workers=0: nothing is read ahead without workers; give workers=1 or "
            "more, or prefetch=None"
        )
    return {
        "prefetch_factor": prefetch,
        "pin_memory": found.get("pin_memory", torch.cuda.is_available()),
    }


def checked_policy(on_bad_image: str) -> str:
    """``on_bad_image`` itself, or ConfigError."""
    if not isinstance(on_bad_image, str) or on_bad_image not in BAD_IMAGE_POLICIES:
        raise ConfigError(f"on_bad_image={shown(on_bad_image)} is unknown: one of 'raise', 'skip'")
    return on_bad_image


def name_key(name: str) -> int:
    """The sample id of a name: 63 bits of its BLAKE2b hash, the same on every machine.

    >>> name_key("cats/1.jpg") == name_key("cats/1.jpg") != name_key("cats/2.jpg")
    True
    """
    return (
        int.from_bytes(
            hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little"
        )
        >> 1
    )


def scramble(ids: np.ndarray[Any, Any], seed: int, epoch: int) -> np.ndarray[Any, Any]:
    """A uint64 hash of (seed, epoch, id) for each id: the finaliser of SplitMix64 (Steele et al., 2014) over
    a keyed id.

    >>> bool((scramble(np.arange(3), 0, 0) != scramble(np.arange(3), 0, 1)).all())
    True
    """
    packed = struct.pack("<QQ8s", seed % 2**64, epoch % 2**64, b"shuffle\0")
    key = np.frombuffer(hashlib.blake2b(packed, digest_size=16).digest(), "<u8")
    z = (ids.astype(np.uint64) ^ key[0]) * np.uint64(0x9E3779B97F4A7C15) + key[1]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))  # type: ignore[no-any-return]


def _few(names: dict[str, str]) -> str:
    shown = [f"{name} ({reason})" for name, reason in list(names.items())[:3]]
    return ", ".join(shown) + (", ..." if len(names) > 3 else "")
