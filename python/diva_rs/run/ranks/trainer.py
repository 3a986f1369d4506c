"""Steps that all ranks take together: the recipe's batch counts the samples of all of them."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from diva_rs.data.batches import Batch, read_batch
from diva_rs.distributed import Ranks, weighted_sums
from diva_rs.run.loader import ResumableLoader
from diva_rs.run.ranks.loaders import check_first_batches
from diva_rs.step.trainer import StepOutcome, Trainer

_END = object()  # a loader may yield None by mistake
_TENSORS = ("parameters", "optimizer")


class Round(NamedTuple):
    """One batch of every rank.

    batch: this rank's; None where it has none left in this pass.
    batches: what all ranks have read of this pass, these included.
    samples: those of all ranks in this round; None with one rank, whose trainer counts them.
    """

    batch: Any
    batches: int
    samples: int | None = None


class RankedTrainer:
    """One `Trainer` per rank; together they step as one trainer on the batches of all ranks.

    >>> ranked = RankedTrainer(Trainer(clip, teacher), Ranks())
    >>> loader = ResumableLoader([torch.rand(2, 3, 32, 32)], seed=0)
    >>> [ranked.train(each, until=2).stepped for each in ranked.rounds(loader, epoch=0)]
    [True]
    """

    def __init__(self, trainer: Trainer, ranks: Ranks) -> None:
        self.trainer, self.ranks = trainer, ranks
        self._pending = 0  # of all ranks
        self._checked = False  # whether the first batches were compared

    @property
    def pending(self) -> int:
        """Samples of all ranks whose gradient waits for the update."""
        return self.trainer.pending if self.ranks.world == 1 else self._pending

    def rounds(self, loader: ResumableLoader, epoch: int) -> Iterator[Round]:
        """Read a pass, one batch per rank at a time, until no rank has one left.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed on a rank; on all ranks in the same round.
        """
        batches = loader.read(epoch)
        if self.ranks.world == 1:
            for batch in batches:
                yield Round(batch, loader.batches)
            return
        while True:
            item = next(batches, _END)
            batch = None if item is _END else read_batch(item, loader.batches)
            if not self._checked:
                check_first_batches(batch, self.ranks)
                self._checked = True
            rows = self.ranks.numbers(_length(batch), loader.batches, int(self.ranks.stopping))
            samples, read, stopping = (sum(column) for column in zip(*rows, strict=True))
            if stopping:
                raise KeyboardInterrupt
            if samples == 0:
                return
            yield Round(batch, read, samples)

    def train(self, given: Round, until: int) -> StepOutcome:
        """Train on this rank's batch, and update once all ranks have ``until`` samples together.

        The outcome is that of this rank's batch.
        """
        if given.samples is None:
            return self.trainer.train(given.batch, until=until)
        outcome = StepOutcome({}, 0, False, None, 0.0)
        if given.batch is not None:
            outcome = self.trainer.train(given.batch)
        self._pending += given.samples
        if self._pending < until:
            return outcome
        update = self.update()
        return StepOutcome(outcome.losses, outcome.samples, True, update.grad_norm, update.lr)

    def update(self) -> StepOutcome:
        """Add up the gradients and losses of all ranks, and update the weights alike on each."""
        if self.ranks.world > 1:
            self._add_up()
        self._pending = 0
        return self.trainer.apply()

    def discard(self) -> None:
        """Discard this rank's gradient since the last update."""
        self.trainer.discard()
        self._pending = 0

    def share_state(self) -> None:
        """Give every rank the state of rank 0's trainer."""
        ranks, trainer = self.ranks, self.trainer
        if ranks.world == 1:
            return
        state = trainer.state_dict()
        others = {name: value for name, value in state.items() if name not in _TENSORS}
        layout = {part: {name: _layout(value) for name, value in state[part].items()} for part in _TENSORS}
        layout, others = ranks.facts((layout, others) if ranks.first else None)[0]
        for part in _TENSORS:  # a resumed optimizer may hold other tensors than a new one
            tensors = {name: _like(own, trainer) for name, own in layout[part].items()}
            state[part] = state[part] if ranks.first else tensors
            ranks.copy_from_first(state[part][name] for name in layout[part])
        # Samples without ids are numbered by turns of the ranks.
        others["counters"]["samples_seen"] = -(-others["counters"]["samples_seen"] // ranks.world)
        trainer.load_state_dict({**state, **others})

    def _add_up(self) -> None:
        trainer, metrics = self.trainer, self.trainer.metrics
        parameters = trainer.parameters().values()
        rows = self.ranks.numbers(*(int(parameter.grad is not None) for parameter in parameters))
        # A parameter without a gradient on any rank keeps none.
        present = [any(column) for column in zip(*rows, strict=True)]
        needed = [p for p, yes in zip(parameters, present, strict=True) if yes]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in needed]
        names = trainer.loss_names
        zero = torch.zeros((), dtype=gradients[0].dtype, device=gradients[0].device)
        losses = [metrics.get(name, zero) for name in names]
        sums = weighted_sums(self.ranks, [*gradients, *losses], trainer.pending / self._pending)
        for parameter, gradient in zip(needed, sums, strict=False):
            parameter.grad = gradient
        metrics.update(zip(names, sums[len(needed) :], strict=True))
        trainer.pending = self._pending


def _length(batch: Batch | None) -> int:
    return 0 if batch is None else len(batch)


def _layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.dtype, tensor.device.type


def _like(layout: tuple[Any, ...], trainer: Trainer) -> torch.Tensor:
    shape, dtype, kind = layout
    return torch.zeros(shape, dtype=dtype, device="cpu" if kind == "cpu" else trainer.step_modules.device)
