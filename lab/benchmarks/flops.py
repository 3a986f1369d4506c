"""Floating-point operations of a step, counted by PyTorch on modules without weights."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from lab.benchmarks.contestants import BestPlain, Drawn, Official
from lab.benchmarks.models import Models
from lab.benchmarks.sizes import Size


def count(size: Size) -> dict[str, int]:
    """FLOPs (two for a multiplication and an addition) of products, convolutions and attention.

    "needed": the VAE and CLIP's forward and backward once, the denoiser and its backward to the condition N
    times. "cached": the same without the VAE. "official": the official way.

    >>> from lab.benchmarks.sizes import find
    >>> found = count(find("tiny"))
    >>> found["cached"] < found["needed"] < found["official"]
    True
    """
    models = Models(size, device="meta")
    drawn = Drawn(*(torch.empty(part.shape, dtype=part.dtype, device="meta") for part in _like(models)))
    images = models.images()
    found = {"needed": _counted(BestPlain(models), images, drawn)}
    found["official"] = _counted(Official(models), images, drawn)
    pixels = torch.empty(images.shape, device="meta")
    found["cached"] = found["needed"] - counted(lambda: models.vae.encode(pixels))
    return found


def _like(models: Models) -> tuple[torch.Tensor, ...]:
    return models.draws().tensors(torch.empty(()))


def _counted(contestant: Any, images: torch.Tensor, drawn: Drawn) -> int:
    contestant.alphas = contestant.alphas.to("meta")
    contestant.drawn = lambda batch, draws: drawn
    return counted(lambda: contestant.step(images))


def counted(call: Callable[[], Any]) -> int:
    """The FLOPs of a call on modules without weights."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())
