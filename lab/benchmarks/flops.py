"""Floating-point operations of a step, counted by PyTorch on modules without weights."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from lab.benchmarks.contestants import BestPlain, Drawn, Official, Plain
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
    images = models.images()
    found = {"needed": counted(lambda: no_draws(BestPlain(models)).step(images))}
    found["official"] = counted(lambda: no_draws(Official(models)).step(images))
    pixels = torch.empty(images.shape, device="meta")
    found["cached"] = found["needed"] - counted(lambda: models.vae.encode(pixels))
    return found


def no_draws(contestant: Plain) -> Plain:
    """The contestant on the meta device, where its draws are made already."""
    models = contestant.models
    parts = models.draws().tensors(torch.empty(()))
    drawn = Drawn(*(torch.empty(part.shape, dtype=part.dtype, device="meta") for part in parts))
    contestant.alphas = contestant.alphas.to("meta")
    contestant.drawn = lambda batch, draws: drawn  # type: ignore[method-assign]
    return contestant


def counted(call: Callable[[], Any]) -> int:
    """The FLOPs of a call on modules without weights."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())
