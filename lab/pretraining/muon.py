"""Muon with matrix products in the precision of the weights."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # as in torch.optim.Muon
_STEPS = 5


class Muon(torch.optim.Optimizer):
    """``torch.optim.Muon`` without weight decay and without bfloat16.

    A processor without bfloat16 instructions multiplies bfloat16 about eighty times more slowly than float32:
    the updates of the tiny CLIP would then take longer than its gradients.

    Args:
        matrices: what trains, 2-D each; the kernel of a convolution counts as (out, in x height x width).
        lr: the rate.
        momentum: Nesterov's.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    average = self.state[matrix].setdefault("momentum_buffer", torch.zeros_like(matrix))
                    average.lerp_(matrix.grad, 1 - group["momentum"])
                    update = orthogonal(matrix.grad.lerp(average, group["momentum"]).flatten(1))
                    rows, columns = update.shape
                    matrix.add_(
                        update.view_as(matrix), alpha=-group["lr"] * math.sqrt(max(1, rows / columns))
                    )


def orthogonal(matrix: Tensor) -> Tensor:
    """Approximately ``U V^T`` of a matrix ``U S V^T``: singular values between 0.7 and 1.2.

    >>> torch.linalg.svdvals(orthogonal(torch.diag(torch.tensor([3.0, 0.5])))).min() > 0.6
    tensor(True)
    """
    a, b, c = _COEFFICIENTS
    wide: Tensor = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(_STEPS):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide
