"""What a step costs a GPU beside its matrix products: operations that launch a kernel, casts, bytes moved.

Counted by a dispatch mode on tensors without values, so that no GPU is needed. Attention is one operation
forward and one backward, as libtorch's kernels on a GPU are.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diva_rs.recipes.recipe import Recipe
from lab.benchmarks.contestants import BestPlain, Ours
from lab.benchmarks.flops import no_draws
from lab.benchmarks.models import Models
from lab.benchmarks.sizes import Size

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "linear", "attention")
_NOTHING = ("detach", "empty", "lift_fresh", "_unsafe_view", "set_", "device")  # no kernel


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations within it: ``launches`` by name, ``casts``, and ``bytes`` of other than products.

    Views, allocations and what is done on the host launch nothing. A ``_foreach_`` operation counts once. A
    cast changes the dtype. The bytes of an operation are those of its
    inputs and outputs; a tensor that is only written counts once.

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
        written = _tensors(output)
        read = _tensors(_read(func, args, kwargs or {}))
        if not all(map(_on_host, (*read, *written))) and not _is_view(func) and not name.startswith(_NOTHING):
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
    """Counts for the step (forward and backward) and for the update: ours, and plain eager PyTorch with one
    draw at a time and with all of them together.

    The update is AdamW's with clipping; plain's by torch's ``foreach`` forms.

    >>> from lab.benchmarks.sizes import find
    >>> found = launches(find("tiny"), "fp32")
    >>> list(found), found["ours"]["step"]["launches"] > 100
    (['ours', 'plain', 'plain, batched'], True)
    """
    models = Models(size, precision, device="meta")
    models.recipe = Recipe(**{**dict(models.recipe), "optimizer": "adamw", "grad_clip": 1.0})
    images, ours = models.images(), Ours(models)
    parameters = list(ours.parameters().values())
    optimizer = torch.optim.AdamW(parameters, foreach=True)

    def update() -> None:
        gradients = [one.grad for one in parameters if one.grad is not None]
        norm = torch.stack(torch._foreach_norm(gradients)).norm()  # as clip_grad_norm_, which refuses meta
        torch._foreach_mul_(gradients, (1.0 / (norm + 1e-6)).clamp(max=1.0))
        optimizer.step()

    with _whole_attention():
        found = {"ours": _counted(step=lambda: ours.step(images), update=ours.trainer.apply)}
    of_plain = _counted(update=update)
    # On tensors of a simulated CPU: autocast does nothing on meta.
    drawn = no_draws(BestPlain(models)).drawn(1, None)
    for name, batched in (("plain", False), ("plain, batched", True)):
        with FakeTensorMode():
            plain = BestPlain(Models(size, precision), batched)
            given = [torch.empty(part.shape, dtype=part.dtype) for part in drawn]
            plain.drawn = lambda batch, draws, given=given: type(drawn)(*given)  # type: ignore[misc,method-assign]
            images = torch.empty(images.shape)
            found[name] = _counted(step=lambda: plain.step(images)) | of_plain  # noqa: B023
    return found


def _counted(**calls: Callable[[], Any]) -> dict[str, Any]:
    found = {}
    for _ in range(2):  # the first time some things happen that happen once
        for name, call in calls.items():
            with Launches() as counted:
                call()
            found[name] = counted.figures()
    return found


@contextmanager
def _whole_attention() -> Iterator[None]:
    """On meta libtorch takes attention apart; within this it is one operation forward and one backward."""
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    for key in ("Meta", "AutogradMeta"):
        library.m.impl(
            "scaled_dot_product_attention",
            key,
            lambda query, key, value, *_, **__: _attention(query, key, value),
            False,
        )
    try:
        yield
    finally:
        library._destroy()


def _like(tensor: Tensor) -> Tensor:
    """(B, heads, L, d) over contiguous (B, L, heads, d), as the kernels write it."""
    return torch.empty_like(tensor.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


@torch.library.custom_op("diva_lab::attention", mutates_args=())
def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return _like(query)


@torch.library.custom_op("diva_lab::attention_backward", mutates_args=())
def _attention_backward(
    query: Tensor, key: Tensor, value: Tensor, at: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _like(query), _like(key), _like(value)


_attention.register_fake(lambda query, key, value: _like(query))
_attention_backward.register_fake(lambda query, key, value, at: (_like(query), _like(key), _like(value)))
_attention.register_autograd(
    lambda ctx, at: _attention_backward(*ctx.saved_tensors, at),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _read(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments without those that are only written: ``out=``, and what is copied to or filled."""
    written = {one.name for one in func._schema.arguments if one.is_out}
    only = func.overloadpacket.__name__ in ("copy_", "zero_", "fill_")
    return [*args[only:], *(value for name, value in kwargs.items() if name not in written)]


def _on_host(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and not isinstance(tensor, FakeTensor)


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    aliases = [one.alias_info for one in returns if one.alias_info is not None]
    return bool(aliases) and not any(alias.is_write for alias in aliases)
