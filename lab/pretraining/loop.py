"""The common parts of the trainings: optimizers, learning rate, a line of progress, checkpoints."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs._base.files import replacing
from diva_rs.errors import DataError
from lab.pretraining.muon import Muon

WARMUP = 100  # steps


class Optimizers:
    """Muon for matrices and convolutions inside a model, AdamW for everything else, one schedule for both.

    With Muon so small a tower separates objects in half as many steps as with AdamW, and the tiny UNet
    represents directions and letters after 1,500 steps, which 3,000 steps of AdamW did not reach.

    Args:
        module: what trains.
        lr: of AdamW.
        matrices: Muon's rate.
        factor: of both rates, for each step: `cosine` or `plateau`, say.
        inner: whether a parameter of this name is Muon's; all others, and vectors, are AdamW's.
        betas, weight_decay: of AdamW.
    """

    def __init__(
        self,
        module: nn.Module,
        lr: float,
        matrices: float,
        factor: Callable[[int], float],
        inner: Callable[[str], bool] = lambda name: "resblocks" in name,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.05,
    ) -> None:
        self.parameters = list(module.parameters())
        own = [p for name, p in module.named_parameters() if inner(name) and p.ndim > 1]
        taken = {id(p) for p in own}
        rest = [p for p in self.parameters if id(p) not in taken]
        self._each = [
            Muon(own, lr=matrices),
            torch.optim.AdamW(rest, lr=lr, betas=betas, weight_decay=weight_decay),
        ]
        self._rates = [matrices, lr]
        self._factor = factor

    def state_dict(self) -> list[Any]:
        """That of each optimizer."""
        return [optimizer.state_dict() for optimizer in self._each]

    def load_state_dict(self, state: list[Any]) -> None:
        """Continue from a `state_dict`."""
        for optimizer, own in zip(self._each, state, strict=True):
            optimizer.load_state_dict(own)

    def step(self, loss: Tensor, step: int) -> None:
        """One update from the gradient of ``loss``, its norm clipped at 1."""
        for optimizer, rate in zip(self._each, self._rates, strict=True):
            optimizer.zero_grad(set_to_none=True)
            set_rate(optimizer, rate * self._factor(step))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self._each:
            optimizer.step()


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def cosine(steps: int) -> Callable[[int], float]:
    """The factor of the rate at each step: a linear warm-up, then a cosine to 1 %.

    >>> cosine(1000)(99) > cosine(1000)(500) > cosine(1000)(999)
    True
    """
    return lambda step: _warm(step, steps) * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)


def plateau(steps: int) -> Callable[[int], float]:
    """The factor of the rate at each step: a linear warm-up, then 1, linearly to 0 over the last quarter.

    >>> [plateau(1000)(step) for step in (49, 99, 750, 875, 1000)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    return lambda step: _warm(step, steps) * min(1.0, 4 * (1 - step / steps))


def _warm(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / min(WARMUP, max(steps // 10, 1)))


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

    def state_dict(self) -> dict[str, Any]:
        """Sums and last means."""
        return {"sums": self.sums, "count": self.count, "last": self.last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.sums, self.count, self.last = state["sums"], state["count"], state["last"]


@dataclass(frozen=True)
class Keep:
    """Checkpoints of a training, and a function that is called after each step.

    Attributes:
        file: of the checkpoint; None: nothing is saved. A training that finds its file resumes to the same
            bits; a file of the last step is a finished training.
        every: steps between two checkpoints.
        callback: gets the number of steps done; what it raises ends the training.
    """

    file: Path | None = None
    every: int = 200
    callback: Callable[[int], None] | None = None

    def steps(self, progress: Progress, **parts: Any) -> Iterator[int]:
        """The steps that are left; ``parts`` have a ``state_dict``, or are generators or lists of tensors.

        Raises DataError for a file that is damaged or of a training of another length or other parts.
        """
        parts["progress"] = progress
        start = self._restore(progress.steps, parts)
        for step in range(start, progress.steps):
            yield step
            done = step + 1
            if self.file is not None and (done % self.every == 0 or done == progress.steps):
                state = {name: _state(part) for name, part in parts.items()}
                with replacing(self.file) as beside:
                    torch.save({"done": done, "steps": progress.steps, "parts": state}, beside)
            if self.callback is not None:
                self.callback(done)

    def _restore(self, steps: int, parts: Mapping[str, Any]) -> int:
        if self.file is None or not self.file.exists():
            return 0
        try:
            saved = torch.load(self.file, weights_only=True)
            if saved["steps"] != steps or saved["parts"].keys() != parts.keys():
                raise ValueError(f"it is of {saved['steps']} steps of {', '.join(saved['parts'])}")
            for name, part in parts.items():
                _restore(part, saved["parts"][name])
        except Exception as err:
            raise DataError(f"{self.file} is no checkpoint of this training, remove it: {err}") from err
        return int(saved["done"])


NOTHING = Keep()  # is saved


def _state(part: Any) -> Any:
    if isinstance(part, torch.Generator):
        return part.get_state()
    return part if isinstance(part, list) else part.state_dict()


@torch.no_grad()
def _restore(part: Any, state: Any) -> None:
    if isinstance(part, torch.Generator):
        part.set_state(state)
    elif isinstance(part, list):
        for tensor, saved in zip(part, state, strict=True):
            tensor.copy_(saved)
    else:
        part.load_state_dict(state)
