"""The loader of image folders and shards: batches, their order, and a position to resume from."""

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, default_collate, get_worker_info

from diva_rs._base.world import rank_and_world
from diva_rs.data.accounting import Accounting
from diva_rs.data.augment import Views
from diva_rs.data.decode import BadImage, check_policy
from diva_rs.data.keys import scramble
from diva_rs.errors import ConfigError, DataError

logger = logging.getLogger("diva_rs.data")

_SIZED = 64  # files whose size is part of an identity


def collate(samples: Sequence[Any]) -> dict[str, Any]:
    """Stack samples ``dict(images=(3, H, W), ids=int)`` into ``dict(images=(B, 3, H, W), ids=(B,) int64)``.

    ``BadImage`` entries are listed under ``"bad"``; a batch of bad images alone holds ``"bad"`` alone. What
    samples hold under ``"accounts"``, the `Accounting` of each shard, is put together.

    >>> batch = collate([{"images": torch.zeros(3, 2, 2), "ids": 5}, BadImage("b.jpg", "truncated")])
    >>> tuple(batch["images"].shape), batch["ids"].tolist(), [str(bad) for bad in batch["bad"]]
    ((1, 3, 2, 2), [5], ['b.jpg (truncated)'])
    """
    bad = [sample for sample in samples if isinstance(sample, BadImage)]
    others = [sample for sample in samples if not isinstance(sample, BadImage)]
    good = [sample for sample in others if "images" in sample]
    batch: dict[str, Any] = {"bad": bad} if bad else {}
    for sample in others:
        if "accounts" in sample:
            batch.setdefault("accounts", {}).update(sample["accounts"])
    if good:
        batch["images"] = default_collate([sample["images"] for sample in good])  # in a worker: shared memory
        ids = [sample["ids"] for sample in good]
        # A default device would otherwise take the ids, in a worker too.
        batch["ids"] = torch.tensor(ids, dtype=torch.int64, device="cpu")
    return batch


class KeyedSampler(Sampler[int]):
    """The order of one epoch: samples sorted by a hash of (seed, epoch, id).

    Under ``torch.distributed`` each rank gets every world-th sample, and all ranks get equally many: a
    remainder is left out, another one in each epoch. With ``even`` set to False, as by `post_train`, which
    weights the ranks, nothing is left out.

    >>> sampler = KeyedSampler(np.arange(6), seed=0)
    >>> sorted(sampler) == list(range(6)) and list(sampler) == list(sampler)
    True
    """

    def __init__(self, ids: np.ndarray[Any, Any], seed: int, shuffle: bool = True) -> None:
        self.ids, self.seed, self.shuffle = ids.astype(np.uint64), seed, shuffle
        self.epoch, self.even = 0, True
        self.start: tuple[int, ...] = ()  # samples of this rank that the next iteration leaves out

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        keys = scramble(self.ids, self.seed, self.epoch) if self.shuffle else np.arange(len(self.ids))
        order = np.argsort(keys, kind="stable")
        rank, world = rank_and_world()
        if self.even:
            order = order[: len(self) * world]
        yield from order[rank::world][sum(self.start) :].tolist()

    def __len__(self) -> int:
        rank, world = rank_and_world()
        return len(self.ids) // world if self.even else len(range(rank, len(self.ids), world))


class ImageLoader:
    """Batches ``dict(images (B, 3, H, W) in [0, 1], ids (B,) int64)`` of one epoch per iteration.

    Two iterations of one epoch give the same batches, for any number of workers. ``bad`` maps the name of
    each skipped image to the reason. ``position`` says where the current iteration stands; `start_at` takes
    it. For the arguments see `folder_loader`.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch: int,
        workers: int,
        on_bad_image: str = "raise",
        sampler: KeyedSampler | None = None,
        prefetch: int | None = None,
        pin_memory: bool | None = None,
    ) -> None:
        check_policy(on_bad_image)
        if sampler is None and not isinstance(dataset, IterableDataset):
            sampler = KeyedSampler(np.arange(len(dataset)), 0, shuffle=False)  # type: ignore[arg-type]
        self.dataset, self.sampler, self.batch_size = dataset, sampler, batch
        self.on_bad_image, self.bad, self.workers = on_bad_image, dict[str, str](), max(1, workers)
        self._start: tuple[int, ...] | None = None
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=batch,
            sampler=sampler,
            num_workers=workers,
            collate_fn=_counted,
            prefetch_factor=prefetch,
            worker_init_fn=on_the_host,
            pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        )
        # Samples read in this epoch, bad ones included. Of shards: the worker whose turn is next, then the
        # samples that each worker has read.
        self.position = self._origin()
        self._accounts = dict[str, Accounting]()  # of each shard that was read
        self._logged, self._warned = "", set[str]()
        if hasattr(dataset, "reports"):
            dataset.reports = True
        else:
            self._log()

    @property
    def accounting(self) -> Accounting:
        """The images that the loader uses, and what it leaves out and why.

        Complete from the start for a folder, and after a pass for shards, except for unreadable images.
        """
        start = getattr(self.dataset, "accounting", Accounting()) + Accounting()
        found = sum((self._accounts[shard] for shard in sorted(self._accounts)), start)
        for name in self.bad:
            found.used -= 1
            found.leave_out("unreadable", name, picture=True)
        return found

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration: its order and its crops."""
        parts: list[Any] = [self.dataset, self.sampler]
        for part in parts:
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)

    def identity(self) -> dict[str, Any]:
        """What decides which images come, in which order and how they are cropped, as JSON values: loaders
        of one identity can continue each other's epoch from a ``position``.
        """
        own = getattr(self.dataset, "identity", lambda: {"dataset": type(self.dataset).__name__})
        if self.sampler is None:
            return {**own(), "workers": self.workers}
        return {**own(), "seed": self.sampler.seed, "shuffle": self.sampler.shuffle}

    @property
    def views(self) -> Views | None:
        """The fixed `Views` of the images, if any."""
        return getattr(self.dataset, "views", None)

    def every_view(self) -> Iterator[dict[str, Any]]:
        """The batches of one epoch for each view of the images: what a latent cache is built from."""
        dataset: Any = self.dataset
        try:
            for number in [None] if self.views is None else range(len(self.views)):
                dataset.only_view = number
                yield from self
        finally:
            dataset.only_view = None

    def start_at(self, position: Sequence[int]) -> None:
        """Start the next iteration at a ``position`` of this epoch; what lies before is not decoded."""
        if len(position) != len(self._origin()):
            raise ConfigError(f"position={tuple(position)} is not of a loader with {self.workers} workers")
        self._start = tuple(position)

    def __len__(self) -> int:
        if isinstance(self.dataset, IterableDataset):
            raise TypeError("the number of images in shards is not known before they are read")
        return len(self._loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if hasattr(self.dataset, "share"):
            self.dataset.share = rank_and_world()  # worker processes have not joined the ranks
        start, self._start = self._start or self._origin(), None
        self.position, good = start, sum(start)
        for batch in self._batches(start):
            for bad in batch.pop("bad", ()):
                if self.on_bad_image == "raise":
                    raise bad.error()
                if bad.name not in self.bad:
                    self.bad[bad.name] = bad.reason
                    logger.warning("skipped bad image %s; %d so far", bad, len(self.bad))
            self._keep(batch.pop("accounts", {}))
            if batch:  # a batch of bad images alone is skipped
                good += len(batch["ids"])
                yield batch
        if not good and rank_and_world()[1] == 1:  # one of several ranks may have no images
            bad = [f"{name} ({reason})" for name, reason in self.bad.items()]
            why = f"all {len(bad)} were bad, {bad[0]} the first" if bad else self.accounting
            raise DataError(f"{self.dataset} gave no image: {why}")
        if self._accounts:
            self._log()

    def _keep(self, accounts: Mapping[str, Accounting]) -> None:
        """Keep the accounting of each shard as it is after most of its members were read."""
        for shard, account in accounts.items():
            if account.total >= self._accounts.get(shard, account).total:
                self._accounts[shard] = account
        pictures = set[str]().union(*(account.pictures for account in accounts.values()))
        if not pictures <= self._warned:
            self._warned |= pictures
            self._log()

    def _log(self) -> None:
        """Log the accounting if it has changed."""
        if self._logged != (line := str(self.accounting)):
            self._logged = line
            self.accounting.log(str(self.dataset))

    def _origin(self) -> tuple[int, ...]:
        return (0,) if self.sampler is not None else (0,) * (1 + self.workers)

    def _batches(self, start: tuple[int, ...]) -> Iterator[dict[str, Any]]:
        """The epoch's batches from ``start``; moves ``position``."""
        source: Any = self.dataset if self.sampler is None else self.sampler
        source.start, read = start, list(start[1:])
        try:
            for worker, count, batch in self._loader:
                if self.sampler is None:
                    part = (worker + start[0]) % self.workers
                    read[part] += count
                    self.position = ((part + 1) % self.workers, *read)
                else:
                    self.position = (self.position[0] + count,)
                yield batch
        finally:
            source.start = ()


def on_the_host(worker: int) -> None:
    """Starts a worker of a DataLoader: a batch on another default device would never arrive."""
    torch.set_default_device("cpu")


def digest_of(names: Sequence[str], paths: Sequence[str]) -> str:
    """A hash of the names of files and of the sizes of a few of them, so that it differs for equal names."""
    digest = hashlib.blake2b("\0".join(names).encode("utf-8", "surrogateescape"), digest_size=8)
    for path in paths[:: max(1, len(paths) // _SIZED)]:
        digest.update(f"{os.path.getsize(path) if os.path.exists(path) else None} ".encode())
    return digest.hexdigest()


def text_of(value: Any) -> str:
    """The ``repr`` of an object in one line, without addresses."""
    return re.sub(" at 0x[0-9a-f]+", "", " ".join(repr(value).split()))


def _counted(samples: Sequence[Any]) -> tuple[int, int, dict[str, Any]]:
    """The worker's number, the number of samples, bad ones included, and the batch."""
    worker = get_worker_info()
    count = sum(isinstance(sample, BadImage) or "images" in sample for sample in samples)
    return 0 if worker is None else worker.id, count, collate(samples)
