"""Gradients of all ranks in one: flat buckets, sent while the vision tower's backward pass goes on."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs.distributed.ranks import Ranks

BUCKET = 25 << 20  # bytes, as in torch's DistributedDataParallel


class _Bucket:
    """Some parameters whose gradients travel as one flat tensor."""

    def __init__(self, members: list[int]) -> None:
        self.members = members
        self.waiting = len(members)  # members whose gradient is not complete yet
        self.flat: Tensor | None = None
        self.work: Any = None
        self.seen: list[tuple[Tensor | None, int]] = []  # the gradients as they were sent

    def reset(self) -> None:
        self.waiting, self.flat, self.work, self.seen = len(self.members), None, None, []


class Reducer:
    """Replaces every ``.grad`` by that of the mean loss over the samples of all ranks.

    Each rank's ``.grad`` holds the gradient of the mean over its own samples, and counts by their number: a
    rank with fewer counts less, one with none sends zeros. Buckets are filled from the last parameter to the
    first, the order in which the backward pass completes them; where autograd tells when a gradient is
    complete, its bucket is sent at once. A gradient that changed after it was sent is sent again.

    Args:
        ranks: who takes part.
        parameters: name -> parameter, the same on every rank.
        overlap: whether to send buckets while the backward pass goes on.

    >>> weight = nn.Parameter(torch.ones(2))
    >>> weight.grad = torch.tensor([1.0, 3.0])
    >>> reducer = Reducer(Ranks(), {"weight": weight})
    >>> reducer.reduce(own=4, total=4, extra=[])
    []
    >>> weight.grad.tolist(), reducer.sent
    ([1.0, 3.0], 0)
    """

    def __init__(self, ranks: Ranks, parameters: Mapping[str, nn.Parameter], overlap: bool = True) -> None:
        self.ranks, self.overlap = ranks, overlap
        self.sent = 0  # bytes that this rank gave to the last reduction
        self._sending = 0
        self._parameters = list(parameters.values())
        self._buckets = _fill(self._parameters)
        self._place = {index: bucket for bucket in self._buckets for index in bucket.members}
        self._passes: dict[int, int] = {}  # backward passes to come, by parameter; empty: not armed
        self._share = 0.0
        self._broken: RuntimeError | None = None  # what happened inside the backward pass
        self._next = 0  # buckets are sent in the same order by every rank
        self._handles: list[Any] = []
        if ranks.world > 1 and overlap:
            for index, parameter in enumerate(self._parameters):
                hook = _Hook(self, index)
                handle = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
                self._handles.append(handle)

    def expect(self, passes: int, own: int, total: int) -> None:
        """The gradients will be complete after ``passes`` backward passes from now, over ``own`` samples here
        and ``total`` on all ranks: send each bucket as soon as it is."""
        if self.ranks.world > 1 and self.overlap:
            self._share = own / total
            self._passes = dict.fromkeys(range(len(self._parameters)), passes)

    def reduce(self, own: int, total: int, extra: list[Tensor]) -> list[Tensor]:
        """Send what was not sent yet, wait for all of it, and put the result into every ``.grad``.

        ``extra`` are further means over a rank's samples (the losses, 0-dim); returns their means over all
        samples. A parameter that has no gradient on any rank keeps none.
        """
        if self.ranks.world == 1:
            return extra
        if self._broken is not None:
            self.ranks.broke(self._broken)
        self._passes, self._share = {}, own / total
        absent = {i for i, parameter in enumerate(self._parameters) if own and parameter.grad is None}
        stale = any(self._changed(bucket) for bucket in self._buckets[: self._next])
        rows = self.ranks.numbers(int(stale), len(absent))
        if any(row[1] for row in rows):
            lists = self.ranks.facts(sorted(absent) if own else None)
            absent = set.intersection(*(set(row) for row in lists if row is not None))
        needed = [bucket for bucket in self._buckets if not absent.issuperset(bucket.members)]
        self._send_all(needed)
        if any(row[0] for row in rows):
            for bucket in needed:  # what one rank has sent the others must have answered
                self._wait(bucket)
            self._reset()
            self._send_all(needed)
        means = self._means(own, extra)
        for bucket in needed:
            self._take(bucket, absent)
        for index in absent:
            self._parameters[index].grad = None
        self._reset()
        self.sent, self._sending = self._sending, 0
        return means

    def close(self) -> None:
        """Take the hooks off the parameters again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def complete(self, index: int) -> None:
        """Parameter ``index`` got the gradient of one more backward pass (called by autograd)."""
        left = self._passes.get(index, 0)
        if left == 0:
            return  # not armed, or one pass more than expected: `reduce` sees that the gradient changed
        self._passes[index] = left - 1
        if left == 1:
            self._place[index].waiting -= 1
            try:
                while self._next < len(self._buckets) and self._buckets[self._next].waiting == 0:
                    self._send(self._buckets[self._next])
                    self._next += 1
            except RuntimeError as err:  # autograd would wrap it
                self._broken, self._passes = err, {}

    def _send_all(self, buckets: list[_Bucket]) -> None:
        for bucket in buckets:
            if bucket.flat is None:
                self._send(bucket)

    def _send(self, bucket: _Bucket) -> None:
        with torch.no_grad():
            parts = []
            for index in bucket.members:
                gradient = self._parameters[index].grad if self._share else None
                bucket.seen.append((gradient, -1 if gradient is None else gradient._version))
                parts.append(
                    torch.zeros_like(self._parameters[index]).flatten()
                    if gradient is None
                    else gradient.flatten()
                )
            bucket.flat = torch.cat(parts).mul_(self._share)
        self._sending += bucket.flat.nbytes
        bucket.work = self.ranks.add_up(bucket.flat)

    def _changed(self, bucket: _Bucket) -> bool:
        for index, (gradient, version) in zip(bucket.members, bucket.seen, strict=True):
            now = self._parameters[index].grad
            if now is not gradient or (now is not None and now._version != version):
                return True
        return False

    def _means(self, own: int, extra: list[Tensor]) -> list[Tensor]:
        if not extra:
            return []
        with torch.no_grad():
            flat = torch.stack([value.detach().to(self._parameters[0]) for value in extra]).mul_(self._share)
            # What a rank without samples holds is of an earlier step, and may be infinite.
            flat = flat if own else torch.zeros_like(flat)
        self._sending += flat.nbytes
        self.ranks.finish(self.ranks.add_up(flat), flat.device)
        return list(flat)

    def _take(self, bucket: _Bucket, absent: set[int]) -> None:
        self._wait(bucket)
        assert bucket.flat is not None
        start = 0
        for index in bucket.members:
            parameter = self._parameters[index]
            end = start + parameter.numel()
            if index not in absent:
                parameter.grad = bucket.flat[start:end].view(parameter.shape)
            start = end

    def _wait(self, bucket: _Bucket) -> None:
        assert bucket.flat is not None
        self.ranks.finish(bucket.work, bucket.flat.device)

    def _reset(self) -> None:
        self._next = 0
        for bucket in self._buckets:
            bucket.reset()


class _Hook:
    """What autograd calls when a parameter's gradient has been added to."""

    def __init__(self, reducer: Reducer, index: int) -> None:
        self._reducer, self._index = reducer, index

    def __call__(self, parameter: Tensor) -> None:
        self._reducer.complete(self._index)


def _fill(parameters: list[nn.Parameter]) -> list[_Bucket]:
    members: list[list[int]] = []
    size = BUCKET
    for index in reversed(range(len(parameters))):
        bytes_of = parameters[index].nbytes
        if size + bytes_of > BUCKET and not (members and not members[-1]):
            members.append([])
            size = 0
        members[-1].append(index)
        size += bytes_of
    return [_Bucket(group) for group in members]
