"""The step of each contestant, in turns, and the peak of the machine."""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from lab.benchmarks.contestants import NAMES, BestPlain, Contestant, Ours, make
from lab.benchmarks.cuda import graphed, on_device
from lab.benchmarks.flops import count
from lab.benchmarks.machine import gemm_peak
from lab.benchmarks.models import Models
from lab.benchmarks.timing import take_turns

_log = logging.getLogger("lab.benchmarks")

_CHOICES = ("batched", "channels_last", "compiled")


def steps(
    models: Models, rounds: int, compile: bool, graph: bool = False, names: tuple[str, ...] = NAMES
) -> dict[str, Any]:
    """Seconds of each contestant's step, in turns, and how plain PyTorch was tuned before.

    With ``graph``, all but the official way replay one step from a CUDA graph.
    """
    images = models.images()
    contestants: dict[str, Contestant] = {}
    tried: list[dict[str, Any]] = []
    for name in names:
        if name == "plain":
            contestants[name], tried = fastest_plain(models, images, compile)
        elif name == "ours, cached" and isinstance(ours := contestants.get("ours"), Ours):
            contestants[name] = Ours(models, cached=True, trainer=ours.trainer)
        else:
            contestants[name] = make(name, models)
    calls: dict[str, Callable[[], Any]] = {
        name: partial(contestant.step, images) for name, contestant in contestants.items()
    }
    captured = {}
    if graph:
        draws = on_device(models.draws(), models.device)
        for name, contestant in contestants.items():
            if name != "official":
                calls[name], captured[name] = graphed(contestant, images, draws)
    times = take_turns(calls, rounds, models.device)
    found: dict[str, Any] = {
        "contestants": {name: t.to_dict() for name, t in times.items()},
        "batch": len(images),
    }
    if captured:
        found["graph"] = captured
    if tried:
        found["plain_tried"] = tried
    return found


def fastest_plain(
    models: Models, images: torch.Tensor, compile: bool
) -> tuple[BestPlain, list[dict[str, Any]]]:
    """Plain PyTorch with those of its choices that are faster, and what was tried.

    The choices are tried one after another: all draws as one batch, channels-last convolutions,
    ``torch.compile``. Each is kept if two steps are faster with it.
    """
    best = BestPlain(models)
    tried = []
    for choice in _CHOICES if compile else _CHOICES[:-1]:
        started = time.perf_counter()
        other = BestPlain(models, **{**best.choices, choice: True})
        other.step(images)  # compiles
        warmed = time.perf_counter() - started
        pair = {"without": best, "with": other}
        times = take_turns(
            {name: partial(c.step, images) for name, c in pair.items()}, 2, models.device, warm=False
        )
        without, with_ = min(times["without"].wall), min(times["with"].wall)
        kept = with_ < without
        tried.append(
            {"choice": choice, "kept": kept, "without": without, "with": with_, "first_step": warmed}
        )
        _log.info("plain: %s %.3f s, without %.3f s", choice, with_, without)
        if kept:
            best = other
    return best, tried


def peak(models: Models, sides: tuple[int, ...] = (1024, 2048, 4096)) -> dict[str, Any]:
    """FLOP/s of matrix products in both dtypes, and the FLOPs of a step."""
    return {
        "gemm": {
            name: gemm_peak(dtype, models.device, sides)
            for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
        },
        "flops": count(models.size),
    }
