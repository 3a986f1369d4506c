"""Sums over the ranks: one all-reduce of everything that a step adds up."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diva_rs.distributed.ranks import Ranks


def weighted_sums(ranks: Ranks, tensors: Sequence[Tensor], weight: float) -> list[Tensor]:
    """For each tensor the sum over all ranks of ``weight`` times that rank's tensor.

    With weights that are each rank's share of the samples, means over a rank's samples become the
    mean over all of them. Tensors of one dtype travel as one flat tensor. A rank of weight 0 sends
    zeros, whatever its tensors hold.

    >>> weighted_sums(Ranks(), [torch.tensor([2.0, 4.0])], weight=1.0)
    [tensor([2., 4.])]
    """
    found: dict[int, Tensor] = {}
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        members = [index for index, tensor in enumerate(tensors) if tensor.dtype == dtype]
        with torch.no_grad():
            flat = torch.cat([tensors[index].detach().reshape(-1) for index in members])
            flat = flat.mul_(weight) if weight else flat.zero_()
            ranks.add_up(flat)
        parts = torch.split(flat, [tensors[index].numel() for index in members])
        found.update((i, part.view(tensors[i].shape)) for i, part in zip(members, parts, strict=True))
    return [found[index] for index in range(len(tensors))]
