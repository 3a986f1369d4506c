"""What a step costs a GPU beside its matrix products: operations that launch a kernel, casts, bytes moved.

Counted by a dispatch mode on modules without weights, so that no GPU is needed. Without one libtorch takes
attention apart into products, a softmax and casts, which on a GPU are one kernel: for ours and plain alike.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diva_rs.recipes.recipe import Recipe
from lab.benchmarks.contestants import BestPlain, Ours
from lab.benchmarks.flops import no_draws
from lab.benchmarks.models import Models
from lab.benchmarks.sizes import Size

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "linear", "attention")
_NOTHING = ("detach", "empty", "lift_fresh", "_unsafe_view", "set_")  # no kernel


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations within it: ``launches`` by name, ``casts``, and ``bytes`` of other than products.

    Views, allocations and what is done on the host launch nothing. A ``_foreach_`` operation counts once. A
    cast changes the dtype. The bytes of an operation are those of its
    inputs and outputs.

    >>> with Launches() as counted:
    ...     _ = torch.empty(2, device="meta").mul(2).view(1, 2).bfloat16()
    >>> dict(counted.launches), counted.casts, counted.bytes
    ({'mul': 1, '_to_copy': 1}, 1, 28)
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches: Counter[str] = Counter()
        self.casts, self.bytes = 0, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        read, written = _tensors((args, kwargs or {})), _tensors(output)
        on_host = all(one.device.type == "cpu" for one in (*read, *written))
        if not on_host and not _is_view(func) and not name.startswith(_NOTHING):
            self.launches[name] += 1
            if name in ("_to_copy", "copy_") and len({one.dtype for one in (*read, *written)}) > 1:
                self.casts += 1
            if not any(word in name for word in _PRODUCTS):
                self.bytes += sum(one.numel() * one.element_size() for one in (*read, *written))
        return output

    def figures(self) -> dict[str, Any]:
        """Launches in all, casts, bytes, and the operations that are launched most."""
        return {
            "launches": self.launches.total(),
            "casts": self.casts,
            "bytes": self.bytes,
            "most": dict(self.launches.most_common(8)),
        }


def launches(size: Size, precision: str) -> dict[str, Any]:
    """Counts for the step (forward and backward) and for the update, ours and best plain eager PyTorch.

    The update is AdamW's with clipping; plain's by torch's ``foreach`` forms.

    >>> from lab.benchmarks.sizes import find
    >>> found = launches(find("tiny"), "fp32")
    >>> sorted(found), found["ours"]["step"]["launches"] > 100
    (['ours', 'plain'], True)
    """
    models = Models(size, precision, device="meta")
    models.recipe = Recipe(**{**dict(models.recipe), "optimizer": "adamw", "grad_clip": 1.0})
    images = models.images()
    ours, plain = Ours(models), no_draws(BestPlain(models))
    parameters = list(plain.parameters().values())
    optimizer = torch.optim.AdamW(parameters, foreach=True)

    def update() -> None:
        gradients = [one.grad for one in parameters if one.grad is not None]
        norm = torch.stack(torch._foreach_norm(gradients)).norm()  # as clip_grad_norm_, which refuses meta
        torch._foreach_mul_(gradients, (1.0 / (norm + 1e-6)).clamp(max=1.0))
        optimizer.step()

    found = {}
    for name, step, moved in (("ours", ours.step, ours.trainer.apply), ("plain", plain.step, update)):
        step(images)  # what happens once, such as the first cast of frozen weights
        moved()
        found[name] = {"step": _counted(lambda step=step: step(images)), "update": _counted(moved)}  # type: ignore[misc]
    return found


def _counted(call: Callable[[], Any]) -> dict[str, Any]:
    counted = Launches()
    with counted:
        call()
    return counted.figures()


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    aliases = [one.alias_info for one in returns if one.alias_info is not None]
    return bool(aliases) and not any(alias.is_write for alias in aliases)
