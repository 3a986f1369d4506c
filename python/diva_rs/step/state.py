"""Does a saved state fit a trainer? Answered before anything of the trainer is changed."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diva_rs._base.tensors import described, is_dense
from diva_rs.errors import WeightsError, shown

COUNTERS = ("steps_done", "samples_seen", "epoch")


class State(NamedTuple):
    """The parts of a `Trainer.state_dict` that it goes on from."""

    parameters: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    counters: dict[str, int]
    products: str | None  # what multiplied bf16 matrices, where there was a choice


def checked_state(state: Any, own: Mapping[str, Tensor], device: torch.device) -> State:
    """The parts of a saved state, for a trainer of the parameters ``own`` on ``device``.

    The optimizer's buffers are compared with its own where they are loaded.

    Raises:
        WeightsError: a missing, unexpected or misshapen entry; names it.
    """
    saved, optimizer, counters = (_mapping(state, name) for name in ("parameters", "optimizer", "counters"))
    for name in sorted(own.keys() ^ saved.keys(), key=shown):
        fault = "missing from" if name in own else "unexpected in"
        raise WeightsError(f"parameter {shown(name, 200)} is {fault} the saved state")
    for name, value in (*saved.items(), *optimizer.items()):
        _check_plain(name, value, device)
    for name, parameter in own.items():
        _check_like(name, saved[name], parameter)
    products = state.get("products")
    if products not in (None, "bf16", "fp32"):
        raise WeightsError(f"products is {shown(products)} in the saved state, expected 'bf16' or 'fp32'")
    return State(saved, optimizer, {name: _count(counters, name) for name in COUNTERS}, products)


def _mapping(state: Any, name: str) -> Mapping[str, Any]:
    part = state.get(name) if isinstance(state, Mapping) else None
    if not isinstance(part, Mapping):
        raise WeightsError(f"not a state of Trainer: {name!r} is missing or no mapping")
    return part


def _check_plain(name: Any, value: Any, device: torch.device) -> None:
    """Whether it can be copied from: halfway through the copies would be too late."""
    if not isinstance(name, str) or not isinstance(value, Tensor):
        raise WeightsError(
            f"entry {shown(name)} is a {type(value).__name__} in the saved state, expected a tensor"
        )
    if not is_dense(value) or (value.is_meta and device.type != "meta"):
        raise WeightsError(
            f"entry {shown(name, 200)} is {described(value)} on {value.device}: it holds no plain values"
        )


def _check_like(name: str, value: Tensor, parameter: Tensor) -> None:
    if (value.shape, value.dtype) != (parameter.shape, parameter.dtype):
        raise WeightsError(
            f"parameter {name} is {value.dtype} {tuple(value.shape)} in the saved state, here "
            f"{parameter.dtype} {tuple(parameter.shape)}"
        )


def _count(counters: Mapping[str, Any], name: str) -> int:
    value = counters.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise WeightsError(
            f"counter {name} is {shown(value)} in the saved state, expected a whole number from 0"
        )
    return value
