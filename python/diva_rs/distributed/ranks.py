"""How the ranks of a run exchange numbers, facts and tensors."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from diva_rs._base.world import local_rank, rank_and_world
from diva_rs.distributed.signals import Notice
from diva_rs.errors import RankError

_TIMEOUT = timedelta(days=1)  # of a fact, such as the end of an evaluation on rank 0


class Ranks:
    """All ranks of a run, seen from this one: ``rank``, the number ``world`` of them, and this one's number
    ``local`` on its machine. With one rank nothing is sent.

    Facts travel between the hosts through a gloo group, tensors through the default group. All
    ranks must call the methods that send, in the same order. Where the connection to another rank
    breaks, they raise `RankError`.

    >>> ranks = Ranks()
    >>> ranks.world, ranks.numbers(3, 0), ranks.facts("here")
    (1, [[3, 0]], ['here'])
    """

    def __init__(self, notice: Notice | None = None) -> None:
        self._notice = notice
        self.rank, self.world = rank_and_world()
        self.local = local_rank(self.rank) if self.world > 1 else 0
        self._hosts: Any = dist.new_group(backend="gloo", timeout=_TIMEOUT) if self.world > 1 else None

    @property
    def stopping(self) -> bool:
        """Whether Ctrl-C, or a signal that ends the process, came to this rank."""
        return self._notice is not None and self._notice.stopping

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes the files."""
        return self.rank == 0

    def numbers(self, *own: int) -> list[list[int]]:
        """A few whole numbers of every rank: row r holds rank r's."""
        if self.world == 1:
            return [list(own)]
        rows = torch.empty(self.world, len(own), dtype=torch.int64, device="cpu")
        with _connection():
            mine = torch.tensor(own, dtype=torch.int64, device="cpu")
            dist.all_gather(list(rows), mine, group=self._hosts)
        return rows.tolist()

    def facts(self, own: Any) -> list[Any]:
        """A value of every rank, by rank."""
        if self.world == 1:
            return [own]
        rows = [None] * self.world
        with _connection():
            dist.all_gather_object(rows, own, group=self._hosts)
        return rows

    def wait(self) -> None:
        """Wait until every rank is here."""
        self.numbers(0)

    def copy_from_first(self, tensors: Iterable[Tensor]) -> list[bool]:
        """Overwrite each tensor by rank 0's; returns which ones differed here, bit by bit."""
        differed = []
        for tensor in tensors:
            # Every backend can send bytes, and they compare exactly.
            own = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            first = own.clone()
            if self.world > 1:
                with _connection():
                    dist.broadcast(first, 0, group=self._group(tensor))
            differed.append(not torch.equal(own, first))
            if differed[-1]:
                with torch.no_grad():
                    tensor.copy_(first.view(tensor.dtype).view(tensor.shape))
        return differed

    def add_up(self, tensor: Tensor) -> None:
        """Replace ``tensor`` by its sum over all ranks."""
        if self.world > 1:
            with _connection():
                dist.all_reduce(tensor, group=self._group(tensor))

    def close(self) -> None:
        """Leave the group of the hosts."""
        if self._hosts is not None:
            dist.destroy_process_group(self._hosts)

    def _group(self, tensor: Tensor) -> Any:
        """The group that can send ``tensor``: None, the default group, off the CPU."""
        return self._hosts if tensor.device.type == "cpu" else None


def weighted_sums(ranks: Ranks, tensors: Sequence[Tensor], weight: float) -> list[Tensor]:
    """For each tensor the sum over all ranks of ``weight`` times that rank's tensor.

    With weights that are each rank's share of the samples, means over a rank's samples become the
    mean over all of them. Tensors of one dtype travel as one flat tensor. A rank of weight 0 sends
    zeros, independent of the values of its tensors.

    >>> weighted_sums(Ranks(), [torch.tensor([2.0, 4.0])], weight=1.0)
    [tensor([2., 4.])]
    """
    sums = list(tensors)
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        members = [index for index, tensor in enumerate(tensors) if tensor.dtype == dtype]
        with torch.no_grad():
            flat = torch.cat([tensors[index].detach().reshape(-1) for index in members])
            flat = flat.mul_(weight) if weight else flat.zero_()
            ranks.add_up(flat)
        parts = torch.split(flat, [tensors[index].numel() for index in members])
        for index, part in zip(members, parts, strict=True):
            sums[index] = part.view(tensors[index].shape)
    return sums


@contextmanager
def _connection() -> Iterator[None]:
    try:
        yield
    except RuntimeError as err:
        raise RankError(
            f"the connection to another rank broke, because that rank failed or was lost ({err}). "
            "Start the run again: with the same output_dir it resumes from its last checkpoint"
        ) from err
