"""What a call of the trainer did."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class StepOutcome:
    """What one call of `Trainer.train` or `Trainer.apply` did."""

    losses: dict[str, Tensor]  # means over the samples, 0-dim, detached, on the device: "loss" is their sum
    samples: int
    stepped: bool  # whether the weights were updated
    grad_norm: Tensor | None  # of the applied gradient, before clipping
    lr: float  # of the update that was made, or is to come
