"""CUDA without a driver: torch's FakeTensorMode, whose tensors have a device and a shape, and no values."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytest import MonkeyPatch
from torch import nn
from torch._subclasses import fake_impls
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

import diva_rs.native.inspect

READ = torch.ops.aten._local_scalar_dense.default
PIN = torch.ops.aten._pin_memory.default  # which torch does not simulate


@contextmanager
def cuda() -> Iterator[None]:
    """Within the block every tensor is simulated: mixed devices, unsupported dtypes and host reads raise."""
    with MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True):
        # `Module.to` would swap a parameter's contents with the new one's, which fake tensors refuse.
        patch.setattr(nn.Module, "_apply", _applied)
        patch.setitem(fake_impls.op_implementations_dict, PIN, lambda mode, func, value, *_: value.clone())
        patch.setattr(diva_rs.native.inspect, "Tensor", FakeTensor)  # otherwise no subclass runs natively
        yield


@contextmanager
def reads() -> Iterator[None]:
    """Within the block a host read gives 1: what happens once, before the first step, may look at values."""
    with MonkeyPatch.context() as patch:
        patch.setitem(fake_impls.op_implementations_dict, READ, lambda mode, func, value: 1)
        yield


def moved(build: Callable[[], Any]) -> Any:
    """A module, or a pipeline of modules, that is built for real and then simulated on CUDA."""
    with unset_fake_temporarily():
        built = build()
    modules = [built] if isinstance(built, nn.Module) else built.components.values()
    for module in modules:
        if isinstance(module, nn.Module):
            module._apply(lambda part: torch.empty(part.shape, dtype=part.dtype, device="cuda"))
    return built


def _applied(module: nn.Module, change: Callable[[Any], Any], recurse: bool = True) -> nn.Module:
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    with torch.no_grad():
                        new = change(tensor)
                    trained = isinstance(tensor, nn.Parameter)
                    table[name] = nn.Parameter(new, tensor.requires_grad) if trained else new
    return module
