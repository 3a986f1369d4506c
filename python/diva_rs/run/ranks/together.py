"""Steps that all ranks take together: as many samples as the recipe's batch, over all of them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from diva_rs.data.batches import read_batch
from diva_rs.distributed import Ranks, weighted_sums
from diva_rs.run.ranks.loaders import check_first_batches
from diva_rs.step.trainer import Trainer

_LOSSES = ("loss", "denoising", "anchor")
_END = object()  # what a loader yields by mistake may be None


class Together:
    """The steps of one `Trainer` per rank, as one trainer on the batches of all would take them.

    Attributes:
        samples: samples that all ranks have trained on so far.

    >>> from diva_rs.run.feed import Feed
    >>> together = Together(Trainer(clip, teacher), Ranks())
    >>> for _, batch, samples in together.rounds(Feed([torch.rand(2, 3, 32, 32)], seed=0), epoch=0):
    ...     loss = together.train(batch, samples, enough=2)
    >>> together.samples, together.pending, together.trainer.steps_done
    (2, 0, 1)
    """

    def __init__(self, trainer: Trainer, ranks: Ranks) -> None:
        self.trainer, self.ranks = trainer, ranks
        self.samples = 0
        self._pending, self._seen = 0, 0
        self._checked = False  # whether the first batches were compared

    @property
    def pending(self) -> int:
        """Samples of all ranks whose gradient waits for the update."""
        return self.trainer.pending if self.ranks.world == 1 else self._pending

    @property
    def seen(self) -> int:
        """Samples that all ranks have read in this pass."""
        return self.trainer.samples_seen if self.ranks.world == 1 else self._seen

    def rounds(self, feed: Any, epoch: int) -> Iterator[tuple[int, Any, int]]:
        """A batch of every rank at a time, until none has any left in this pass.

        ``feed`` is this rank's `Feed`. Yields the batches that all ranks have read of this pass,
        this rank's batch (None: others have one left), and the samples of all of them (0 where one
        rank is alone).

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed on some rank; on all of them in the same round.
        """
        batches = feed.read(epoch)
        if self.ranks.world == 1:
            for batch in batches:
                yield feed.batches, batch, 0
            return
        while True:
            batch = next(batches, _END)
            read = None if batch is _END else read_batch(batch, feed.batches)
            own = 0 if read is None else len(read)
            if not self._checked:
                check_first_batches(read, self.ranks)
                self._checked = True
            stop = self.ranks.stopping
            rows = self.ranks.numbers(own, feed.batches, self.trainer.samples_seen + own, int(stop))
            samples, done, self._seen, stop = (sum(column) for column in zip(*rows, strict=True))
            if stop:
                raise KeyboardInterrupt
            if samples == 0:
                return
            yield done, None if batch is _END else batch, samples

    def train(self, batch: Any, samples: int, enough: int) -> Tensor | None:
        """Run this rank's part of a round of ``samples``; with ``enough`` of them together, update.

        Returns the loss of this rank's batch, where it has one.
        """
        trainer = self.trainer
        if self.ranks.world == 1:
            before = trainer.samples_seen
            try:
                return trainer.train(batch, until=enough).losses["loss"]
            finally:
                self.samples += trainer.samples_seen - before
        self._pending += samples
        self.samples += samples
        loss = None
        if batch is not None:
            loss = trainer.accumulate(batch)
        if self._pending >= enough:
            self.update()
        return loss

    def update(self) -> None:
        """Add up the gradients and losses of all ranks, and update every rank's weights alike."""
        trainer = self.trainer
        if self.ranks.world == 1:
            trainer.apply()
            return
        parameters = trainer.parameters().values()
        rows = self.ranks.numbers(*(int(parameter.grad is not None) for parameter in parameters))
        needed = [p for p, column in zip(parameters, zip(*rows, strict=True), strict=True) if any(column)]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in needed]
        device = trainer.step_modules.device
        losses = [torch.as_tensor(trainer.metrics.get(name, 0.0), device=device) for name in _LOSSES]
        sums = weighted_sums(self.ranks, [*gradients, *losses], trainer.pending / self._pending)
        for parameter, gradient in zip(needed, sums[: len(needed)], strict=True):
            parameter.grad = gradient
        trainer.metrics.update(zip(_LOSSES, sums[len(needed) :], strict=True))
        trainer.pending = self._pending
        trainer.apply()
        self._pending = 0

    def discard(self) -> None:
        """Discard the gradient since the last `apply`, on this rank."""
        self.trainer.discard()
        self._pending = 0

    def share_state(self) -> None:
        """Go on from rank 0's state on every rank, as after it has loaded a checkpoint."""
        if self.ranks.world == 1:
            return
        state = self.trainer.state_dict()
        for part in ("parameters", "optimizer"):
            values = state[part]
            self.ranks.copy_from_first(values[name] for name in sorted(values))
        counters = self.ranks.facts(state["counters"])[0]
        # The ranks take turns at samples without ids: see `inputs`.
        counters["samples_seen"] = -(-counters["samples_seen"] // self.ranks.world)
        self.trainer.load_state_dict({**state, "counters": counters})

    def own_place(self, place: dict[str, Any] | None) -> dict[str, Any] | None:
        """This rank's place in its part of the data, of ``place``, which counts the batches of all ranks.

        >>> Together(Trainer(clip, teacher), Ranks()).own_place({"epoch": 1, "batches": 3})
        {'epoch': 1, 'batches': 3}
        """
        if place is None:
            return None
        batches = len(range(self.ranks.rank, int(place["batches"]), self.ranks.world))
        return {**place, "batches": batches}
