"""The common parts of the trainings: optimizers, learning rate, a line of progress."""

import math
import sys
import time

import torch
from torch import Tensor, nn

from lab.pretraining.muon import Muon

WARMUP = 100  # steps


class Optimizers:
    """Muon for the matrices inside transformer blocks, AdamW for everything else, one schedule for both.

    With Muon so small a tower separates objects in half as many steps as with AdamW.

    Args:
        module: what trains.
        lr: of AdamW.
        matrices: Muon's rate.
        steps: how long: a linear warm-up, then a cosine to 1 %.
    """

    def __init__(
        self, module: nn.Module, lr: float, matrices: float, steps: int, weight_decay: float = 0.05
    ) -> None:
        self.parameters = list(module.parameters())
        inner = [p for name, p in module.named_parameters() if "resblocks" in name and p.ndim == 2]
        taken = {id(p) for p in inner}
        rest = [p for p in self.parameters if id(p) not in taken]
        self._each = [
            Muon(inner, lr=matrices),
            torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay),
        ]
        self._rates = [matrices, lr]
        self._steps = steps

    def step(self, loss: Tensor, step: int) -> None:
        """One update from the gradient of ``loss``, its norm clipped at 1."""
        for optimizer, rate in zip(self._each, self._rates, strict=True):
            optimizer.zero_grad(set_to_none=True)
            cosine(optimizer, rate, step, self._steps)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self._each:
            optimizer.step()


def cosine(optimizer: torch.optim.Optimizer, lr: float, step: int, steps: int) -> None:
    """Set the rate of a step: linear warm-up, then a cosine to 1 % of ``lr``."""
    warm = min(1.0, (step + 1) / min(WARMUP, max(steps // 10, 1)))
    factor = warm * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)
    for group in optimizer.param_groups:
        group["lr"] = lr * factor


class Progress:
    """Running means of losses, printed to stderr every ``every`` steps; only then is a tensor read."""

    def __init__(self, name: str, steps: int, every: int = 100) -> None:
        self.name, self.steps, self.every = name, steps, every
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.last: dict[str, float] = {}
        self.started = time.perf_counter()

    def update(self, step: int, **losses: Tensor) -> None:
        """Add the losses of a step."""
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, torch.zeros(())) + loss.detach().float()
        self.count += 1
        if (step + 1) % self.every == 0 or step + 1 == self.steps:
            self.last = {name: float(value) / self.count for name, value in self.sums.items()}
            self.sums, self.count = {}, 0
            shown = "  ".join(f"{name} {value:.4f}" for name, value in self.last.items())
            seconds = time.perf_counter() - self.started
            print(
                f"{self.name} {step + 1}/{self.steps}  {shown}  {seconds:.0f} s", file=sys.stderr, flush=True
            )
