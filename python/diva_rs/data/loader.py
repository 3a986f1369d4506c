"""The loader of image folders and shards: batches, their order, and a position to resume from."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from diva_rs._base.tensors import described
from diva_rs._base.world import rank_and_world
from diva_rs.data.accounting import Accounting
from diva_rs.data.augment import Views
from diva_rs.data.decode import BadImage, check_policy
from diva_rs.data.keys import scramble
from diva_rs.errors import ConfigError, DataError

logger = logging.getLogger("diva_rs.data")


class SkippedSample:
    """Stands for a sample that an interrupted run has used already; it is not decoded."""


class Accounted(dict[str, Any]):
    """A sample, or nothing at the end, that brings the accounting of shards from a worker."""

    accounts: Mapping[str, Accounting] = MappingProxyType({})


def collate(samples: Sequence[Any]) -> dict[str, Any]:
    """Stack samples ``dict(images=(3, H, W), ids=int)`` into ``dict(images=(B, 3, H, W), ids=(B,) int64)``.

    ``BadImage`` entries are listed under ``"bad"``; a batch of bad images alone holds ``"bad"`` alone.

    >>> batch = collate([{"images": torch.zeros(3, 2, 2), "ids": 5}, BadImage("b.jpg", "truncated")])
    >>> tuple(batch["images"].shape), batch["ids"].tolist(), [str(bad) for bad in batch["bad"]]
    ((1, 3, 2, 2), [5], ['b.jpg (truncated)'])
    """
    good = [sample for sample in samples if sample and not isinstance(sample, (BadImage, SkippedSample))]
    bad = [sample for sample in samples if isinstance(sample, BadImage)]
    batch: dict[str, Any] = {"bad": bad} if bad else {}
    accounts = dict(pair for sample in samples for pair in getattr(sample, "accounts", {}).items())
    if accounts:
        batch["accounts"] = accounts
    if good:
        shapes = sorted({tuple(sample["images"].shape) for sample in good})
        if len(shapes) > 1:
            raise DataError(f"images of one batch differ in size, {shapes}: crop them to one size")
        batch["images"] = torch.stack([sample["images"] for sample in good])
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
        if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ConfigError(f"ids={described(ids)}: an array (N,) of integers is needed")
        self.ids, self.seed, self.shuffle, self.epoch = ids.astype(np.uint64), seed, shuffle, 0
        self.start = 0  # samples of this rank that the next iteration leaves out
        self.even = True

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

    Two iterations of one epoch give the same batches, for any number of workers. ``bad`` maps the name of
    each skipped image to the reason; ``position`` counts the batches read in this epoch. For the arguments
    see `folder_loader`.
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
        self.dataset, self.sampler, self.batch_size = dataset, sampler, batch
        self.on_bad_image, self.bad = on_bad_image, dict[str, str]()
        self.position = self._start = 0
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=batch,
            sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            prefetch_factor=prefetch,
            pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        )
        self._accounts = dict[str, Accounting]()  # of each shard that was read
        self._logged = ""
        if hasattr(dataset, "reports"):
            dataset.reports = True
        else:
            self._log()

    @property
    def accounting(self) -> Accounting:
        """The images that the loader uses, and what it leaves out and why.

        It is complete from the start for a folder, and after a pass for shards. Unreadable images are left
        out when they are met.
        """
        found = getattr(self.dataset, "accounting", Accounting()) + Accounting()
        for shard in sorted(self._accounts):
            found += self._accounts[shard]
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

    @property
    def views(self) -> Views | None:
        """The fixed `Views` of the images; None where an epoch shows new crops, or always the same."""
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

    def start_at(self, position: int) -> None:
        """Start the next iteration after ``position`` batches of the epoch, without decoding these."""
        self._start = position

    def __len__(self) -> int:
        if isinstance(self.dataset, IterableDataset):
            raise TypeError("the number of images in shards is not known before they are read")
        return len(self._loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if hasattr(self.dataset, "share"):
            self.dataset.share = rank_and_world()  # worker processes have not joined the ranks
        start, self._start = self._start, 0
        good = self.position = start
        for batch in self._batches(start):
            self.position += 1
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
            few = ", ".join(f"{name} ({reason})" for name, reason in list(self.bad.items())[:3])
            reason = f"all {len(self.bad)} were bad, {few}" if self.bad else self.accounting
            raise DataError(f"{self.dataset} gave no image: {reason}")
        if self._accounts:
            self._log()

    def _keep(self, accounts: Mapping[str, Accounting]) -> None:
        """Keep the accounting of each shard as it is after most of its members were read."""
        warned = self.accounting.pictures
        for shard, account in accounts.items():
            if account.total >= self._accounts.get(shard, account).total:
                self._accounts[shard] = account
        if not self.accounting.pictures <= warned:
            self._log()

    def _log(self) -> None:
        """Log the accounting if it has changed."""
        if self._logged != (line := str(self.accounting)):
            self._logged = line
            self.accounting.log(str(self.dataset))

    def _batches(self, start: int) -> Iterator[dict[str, Any]]:
        """The epoch's batches after the first ``start``, which are not decoded."""
        if self.sampler is not None:
            self.sampler.start = start * self.batch_size
            try:
                yield from self._loader
            finally:
                self.sampler.start = 0
            return
        if hasattr(self.dataset, "start"):
            # The workers take turns. One without further samples leaves its turns to the others, so a worker
            # has given at least these batches.
            workers = max(1, self._loader.num_workers)
            turns = (len(range(worker, start, workers)) for worker in range(workers))
            self.dataset.start = [self.batch_size * count for count in turns]
        yield from islice(self._loader, start, None)
