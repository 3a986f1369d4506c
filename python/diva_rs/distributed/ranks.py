"""How the ranks of a run talk: small facts between the hosts, tensors from rank 0."""

import json
import os
import socket
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from diva_rs._base.arguments import takes
from diva_rs._base.kinds import each
from diva_rs._base.settings import integer, optional
from diva_rs._base.world import local_rank, rank_and_world
from diva_rs.distributed.heartbeat import Watch, limit
from diva_rs.distributed.stop import Stop
from diva_rs.errors import RankError

_FOREVER = timedelta(days=30)  # one rank may evaluate while the others wait: the watch tells a dead one apart
_CHUNK = 1 << 25  # bytes of one broadcast


class Ranks:
    """All ranks of a run, as seen from this one. Where there is one rank alone, nothing is sent.

    Every method that sends is to be called by all ranks, in the same order.

    Attributes:
        rank, world, local: this rank, how many there are, and its number on its own machine.
        stop: whether Ctrl-C was pressed here.

    >>> ranks = Ranks()
    >>> ranks.world, ranks.numbers(3, 0), ranks.facts("here")
    (1, [[3, 0]], ['here'])
    """

    def __init__(self) -> None:
        self.rank, self.world = rank_and_world()
        self.local = local_rank(self.rank) if self.world > 1 else 0
        self.watch: Watch | None = None
        self.stop = Stop()
        self._hosts: Any = None  # gloo, whatever the devices: facts about the run are on the hosts
        self._tensors: dict[str, Any] = {}  # a group for the tensors of each kind of device
        self._store: Any = None
        if self.world > 1:
            self._connect()

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes the files."""
        return self.rank == 0

    def numbers(self, *own: int) -> list[list[int]]:
        """A few whole numbers of every rank: row r holds rank r's."""
        if self.world == 1:
            return [list(own)]
        rows = torch.empty(self.world, len(own), dtype=torch.int64)
        self.finish(
            dist.all_gather(
                list(rows), torch.tensor(own, dtype=torch.int64), group=self._hosts, async_op=True
            )
        )
        return rows.tolist()

    def facts(self, own: Any) -> list[Any]:
        """A value of every rank, by rank: anything that JSON holds."""
        if self.world == 1:
            return [own]
        text = torch.frombuffer(bytearray(json.dumps(own).encode()), dtype=torch.uint8)
        lengths = [row[0] for row in self.numbers(len(text))]
        rows = torch.zeros(self.world, max(lengths), dtype=torch.uint8)
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(text)] = text
        self.finish(dist.all_gather(list(rows), padded, group=self._hosts, async_op=True))
        return [json.loads(bytes(row[:length].tolist())) for row, length in zip(rows, lengths, strict=True)]

    def wait(self) -> None:
        """Until every rank is here."""
        self.numbers(0)

    @takes(numbers=optional(each(integer(-(1 << 63), (1 << 63) - 1), "whole numbers")))
    def from_first(self, numbers: Sequence[int] | None) -> list[int]:
        """Rank 0's whole numbers, on every rank; the others give None."""
        if self.world == 1:
            return list(numbers or ())
        length = self.numbers(0 if numbers is None else len(numbers))[0][0]
        row = torch.empty(length, dtype=torch.int64) if numbers is None else torch.tensor(numbers)
        if length:
            self.finish(dist.broadcast(row.to(torch.int64), 0, group=self._hosts, async_op=True))
        return row.tolist()

    def copy_from_first(self, tensors: Iterable[Tensor]) -> list[bool]:
        """Overwrite each tensor by rank 0's; returns which ones were different here, bit by bit."""
        tensors, differed = list(tensors), list[bool]()
        if self.world == 1:
            return [False] * len(tensors)
        with torch.no_grad():
            for tensor in tensors:
                own = _bits(tensor)
                theirs = own.clone()
                for start in range(0, len(theirs), _CHUNK):
                    part = theirs[start : start + _CHUNK]
                    work = dist.broadcast(part, 0, group=self.group(tensor.device), async_op=True)
                    self.finish(work, tensor.device)
                differed.append(not torch.equal(own, theirs))
                if differed[-1]:
                    tensor.copy_(theirs.view(tensor.dtype).view(tensor.shape))
        return differed

    def add_up(self, flat: Tensor) -> Any:
        """Begin to replace ``flat`` by its sum over the ranks; hand what comes back to `finish`."""
        return dist.all_reduce(flat, group=self.group(flat.device), async_op=True)

    def finish(self, work: Any, device: torch.device | None = None) -> None:
        """Wait for what was begun with tensors of ``device`` (None: the host). On CUDA the stream waits.

        Raises:
            RankError: another rank failed meanwhile, or the connection to it broke.
        """
        assert self.watch is not None
        try:
            pause = 0.0
            # Waited for in Python: Ctrl-C and the failure of another rank are noticed here.
            while (device is None or device.type != "cuda") and not work.is_completed():
                self.watch.check()
                time.sleep(pause)
                pause = min(pause + 2e-5, 1e-3)
            work.wait()
        except RankError:
            raise
        except RuntimeError as err:
            self.broke(err)

    def broke(self, error: RuntimeError) -> NoReturn:
        """Raise the reason why a connection to another rank broke."""
        assert self.watch is not None
        raise RankError(self.watch.why(error)) from None

    def group(self, device: torch.device) -> Any:
        """The group that adds up tensors of ``device``: NCCL on CUDA, gloo elsewhere."""
        kind = device.type
        if kind not in self._tensors:
            self._tensors[kind] = dist.new_group(backend="nccl" if kind == "cuda" else "gloo")
        return self._tensors[kind]

    def close(self) -> None:
        """Stop watching; the groups that were made here go."""
        if self.watch is not None:
            self.watch.close()
            for group in (self._hosts, *self._tensors.values()):
                dist.destroy_process_group(group)
        self._tensors, self.watch = (
            {},
            None,
        )  # the store stays: another rank may read in it why this one failed

    def _connect(self) -> None:
        self._hosts = dist.new_group(backend="gloo", timeout=_FOREVER)
        address: list[Any] = [None]
        if self.first:
            self._store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
            address = [[socket.gethostname(), self._store.port]]
        dist.broadcast_object_list(address, 0, group=self._hosts)
        host, port = address[0]
        near = host == socket.gethostname()
        host = "localhost" if near else os.environ.get("MASTER_ADDR") or host
        # The watch's own connection: a wait of one thread must not hold up another's.
        timeout = timedelta(seconds=limit())
        client = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout)
        self.watch = Watch(client, self.rank, self.world)
        dist.barrier(group=self._hosts)
        self.watch.start()


def _bits(tensor: Tensor) -> Tensor:
    """The tensor's bytes as a flat uint8 tensor: every backend can send them, and they compare exactly."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
