"""Options that only matter on CUDA: a replayed graph of the step, memory layout, TF32."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import diva_rs
from lab.benchmarks.contestants import Contestant
from lab.benchmarks.models import Models


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Within the block, allow or forbid TF32 for float32 products and convolutions on CUDA.

    >>> with tf32(True):
    ...     torch.backends.cuda.matmul.allow_tf32
    True
    """
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = allowed
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value


def channels_last(models: Models) -> None:
    """Put the frozen networks of all contestants into channels-last layout."""
    for module in (models.unet, models.vae):
        module.to(memory_format=torch.channels_last)


def on_device(draws: diva_rs.Draws, device: torch.device) -> diva_rs.Draws:
    """The draws as tensors on ``device``, so that a step copies nothing to it."""
    return diva_rs.Draws(*draws.tensors(torch.empty((), device=device)))


def graphed(contestant: Contestant, images: Tensor, draws: diva_rs.Draws) -> tuple[Callable[[], Any], str]:
    """A call that replays the step of these images and draws, and whether the capture worked.

    Without CUDA, or if the capture fails, the call runs the step itself.
    """
    if images.device.type != "cuda":
        return lambda: contestant.step(images, draws), "not captured: a CUDA graph needs CUDA"
    try:
        # As PyTorch's manual says: warm up on a side stream, then capture, without gradients.
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                contestant.step(images, draws)
        torch.cuda.current_stream().wait_stream(side)
        contestant.clear()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            contestant.step(images, draws)
    except RuntimeError as err:
        told = str(err).strip().splitlines() or [""]
        return lambda: contestant.step(images, draws), f"not captured: {told[0]}"
    return graph.replay, "captured"
