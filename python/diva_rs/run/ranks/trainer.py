"""Steps that all ranks take together: the recipe's batch counts the samples of all of them."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from diva_rs.data.batches import Batch
from diva_rs.distributed import Ranks, weighted_sums
from diva_rs.run.loader import ResumableLoader
from diva_rs.run.ranks.loaders import check_first_batches
from diva_rs.step.trainer import Trainer

_TENSORS = ("parameters", "optimizer")


class Round(NamedTuple):
    """One batch of every rank."""

    batch: Batch | None  # this rank's; None where it has none left in this pass
    places: tuple[tuple[int, ...], ...]  # where each rank then stands in this pass
    prints: tuple[int, ...]  # of what each rank has read in this pass
    samples: int  # of all ranks


class RankedTrainer:
    """One `Trainer` per rank; together they step as one trainer on the batches of all ranks."""

    def __init__(self, trainer: Trainer, ranks: Ranks) -> None:
        self.trainer, self.ranks = trainer, ranks
        self._checked = ranks.world == 1  # whether the first batches were compared

    def rounds(
        self,
        loader: ResumableLoader,
        epoch: int,
        places: tuple[tuple[int, ...], ...] = (),
        prints: tuple[int, ...] = (),
    ) -> Iterator[Round]:
        """Read a pass from ``places``, one batch per rank at a time, until no rank has one left.
        Ctrl-C on one rank raises KeyboardInterrupt on all, in the same round.
        """
        ranks = self.ranks
        place = places[ranks.rank] if places else loader.start
        batches = loader.read(epoch, place, prints[ranks.rank] if prints else 0)
        longest = max(row[0] for row in ranks.numbers(len(place)))
        while True:
            place, batch = next(batches, (place, None))
            if not self._checked:
                check_first_batches(batch, ranks)
                self._checked = True
            length = 0 if batch is None else len(batch)
            padded = [*place, *[-1] * (longest - len(place))]
            rows = ranks.numbers(length, int(ranks.stopping), loader.print, *padded)
            samples = sum(row[0] for row in rows)
            if any(row[1] for row in rows):
                raise KeyboardInterrupt
            if samples == 0:
                return
            stand = tuple(tuple(n for n in row[3:] if n >= 0) for row in rows)
            yield Round(batch, stand, tuple(row[2] for row in rows), samples)

    def train(self, given: Round, pending: int, complete: bool) -> Tensor | None:
        """Train on this rank's batch, and update where that makes the step ``complete``.

        ``pending`` counts the samples of all ranks since the last update, this round's included.
        Returns the mean loss of this rank's batch, None where it has none.
        """
        together = self.ranks.world > 1
        loss = None
        if given.batch is not None:
            until = 1 if complete and not together else None
            loss = self.trainer.train(given.batch, until=until).losses["loss"]
        if complete and together:
            self.update(pending)
        return loss

    def update(self, pending: int) -> None:
        """Add up the gradients and losses of all ranks, and update the weights alike on each."""
        if self.ranks.world > 1:
            self._add_up(pending)
        self.trainer.apply()

    def share_state(self) -> None:
        """Give every rank the state of rank 0's trainer."""
        ranks, trainer = self.ranks, self.trainer
        if ranks.world == 1:
            return
        state, device = trainer.state_dict(), trainer.step_modules.device
        own = {
            (part, name): tensor.to(device) for part in _TENSORS for name, tensor in state.pop(part).items()
        }
        # A resumed optimizer may hold other tensors than a new one.
        layout, state = ranks.facts(({key: tensor.to("meta") for key, tensor in own.items()}, state))[0]
        if not ranks.first:
            own = {key: torch.zeros_like(tensor, device=device) for key, tensor in layout.items()}
        ranks.copy_from_first(own[key] for key in layout)
        for part in _TENSORS:
            state[part] = {name: tensor for (owner, name), tensor in own.items() if owner == part}
        # Samples without ids are numbered by turns of the ranks.
        state["counters"]["samples_seen"] = -(-state["counters"]["samples_seen"] // ranks.world)
        trainer.load_state_dict(state)

    def _add_up(self, pending: int) -> None:
        trainer, metrics = self.trainer, self.trainer.metrics
        parameters = trainer.parameters().values()
        rows = self.ranks.numbers(*(int(parameter.grad is not None) for parameter in parameters))
        # A parameter without a gradient on any rank keeps none.
        needed = [p for p, *column in zip(parameters, *rows, strict=True) if any(column)]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in needed]
        zero = gradients[0].new_zeros(())
        losses = [metrics.get(name, zero) for name in trainer.loss_names]
        sums = weighted_sums(self.ranks, [*gradients, *losses], trainer.pending / pending)
        for parameter, gradient in zip(needed, sums, strict=False):
            parameter.grad = gradient
        metrics.update(zip(trainer.loss_names, sums[len(needed) :], strict=True))
        trainer.pending = pending
