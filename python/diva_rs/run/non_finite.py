"""Losses and gradients that are not finite, losses that jump, and the samples they belong to.

Losses and gradient norms stay on the device and are read together, once per log.
"""

import itertools
import logging
import math
import statistics
from collections import deque
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diva_rs._base.world import rank_and_world
from diva_rs.data.batches import Batch
from diva_rs.errors import DivaError

_log = logging.getLogger("diva_rs")

READ_EVERY = 100  # steps, where logs are rarer
_WINDOW, _ENOUGH = 100, 20  # losses that a jump is measured against, and the fewest
_JUMP = 10 * 1.4826  # median absolute deviations that make one, ten standard deviations of a normal
_LEAST = 0.1  # of the usual loss: where it hardly varies, no less is a jump
_NAMED = 8  # ids that a message shows
_ELSEWHERE = "on another rank, which names them"


class _Step(NamedTuple):
    number: int
    samples: list[str]  # of each batch of this rank
    values: list[Tensor]  # loss and gradient norm of all ranks, then the loss of each batch


class NonFiniteMonitor:
    """Counts the updates that were skipped, and warns of losses that jump.

    The optimizer itself skips an update whose loss or gradient is not finite, on the device. Loss
    and gradient are those of all ranks, so every rank counts alike. ``skipped`` counts the updates
    that were skipped, as far as they were read.
    """

    def __init__(self, most: int) -> None:
        self.most, self.skipped, self._streak = most, 0, 0
        self._last = ""  # which step was the last to be skipped, and its samples
        self._batches: list[tuple[str, Tensor]] = []  # since the last step: samples, mean loss
        self._steps: list[_Step] = []
        self._losses: deque[float] = deque(maxlen=_WINDOW)

    def batch(self, batch: Batch, seen: int, loss: Tensor) -> None:
        """Note a batch and its loss. Samples without ids are named by their number in the pass, after
        ``seen`` others of this rank."""
        self._batches.append((_named(batch, seen), loss))

    def step(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Note that the batches since the last step were one, with this loss and gradient norm."""
        losses = [value for _, value in self._batches]
        self._steps.append(_Step(step, [name for name, _ in self._batches], [loss.detach(), norm, *losses]))
        self._batches = []

    def read(self) -> None:
        """Read what was noted, in one copy from the device; count and log what is wrong."""
        steps, self._steps = self._steps, []
        values = [value for step in steps for value in step.values]
        if not values or values[0].is_meta:
            return
        home = values[0].device
        numbers = iter(torch.stack([value.to(home, torch.float64) for value in values]).tolist())
        for step in steps:
            loss, norm, *losses = itertools.islice(numbers, len(step.values))
            self._look(step.number, loss, norm, list(zip(losses, step.samples, strict=True)))

    def check(self) -> None:
        """Raise DivaError where more than ``most`` updates in a row were skipped."""
        if self._streak > self.most:
            what = f"{self._streak} updates in a row were skipped, whose loss or gradient was not finite"
            advice = "lower lr, use precision='fp32', or look at these images; max_skipped allows more"
            raise DivaError(f"{what}, the last at {self._last}: {advice}")

    def _look(self, step: int, loss: float, norm: float, parts: list[tuple[float, str]]) -> None:
        """Count and log one step; ``parts`` are the loss and the samples of each batch of this rank."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.skipped, self._streak = self.skipped + 1, self._streak + 1
            what = "gradient" if math.isfinite(loss) else "loss"
            bad = [samples for value, samples in parts if what == "gradient" or not math.isfinite(value)]
            named = "; ".join(bad) or _ELSEWHERE
            self._last = f"step {step} (samples: {named})"
            _log.warning("step %d was skipped: its %s is not finite. Samples: %s", step, what, named)
            return
        self._streak = 0
        if len(self._losses) >= _ENOUGH:
            usual = statistics.median(self._losses)
            spread = statistics.median(abs(value - usual) for value in self._losses)
            bound = usual + max(_JUMP * spread, _LEAST * abs(usual))
            if loss > bound:
                worst, samples = max(parts, default=(bound, ""))
                named = samples if worst > bound else _ELSEWHERE
                text = "the loss jumped to %.4g at step %d, the median of the last %d is %.4g. Samples: %s"
                _log.warning(text, loss, step, len(self._losses), usual, named)
        self._losses.append(loss)


def _named(batch: Batch, seen: int) -> str:
    if batch.ids is not None:
        return _few(batch.ids)
    rank, world = rank_and_world()  # the ranks take turns, as for the draws
    numbers = range(seen * world + rank, (seen + len(batch)) * world, world)
    return f"{_few(numbers)} of the pass, without ids"


def _few(names: Any) -> str:
    first = itertools.islice(names, _NAMED)
    shown = [str(name.item() if isinstance(name, (Tensor, np.generic)) else name) for name in first]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
