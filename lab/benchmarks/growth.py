"""How the time of a step grows with draws, batch and resolution, and the vision tower's share of it."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import diva_rs._native as _native
from lab.benchmarks.contestants import Ours, make
from lab.benchmarks.models import Models
from lab.benchmarks.timing import take_turns, wait

DRAWS = (1, 2, 4, 8)
BATCHES = (1, 2, 4, 8)
SIDES = (0.5, 1.0, 1.5)  # of the images, against the size's own


def growth(models: Models, rounds: int, names: Sequence[str]) -> dict[str, Any]:
    """Seconds of a step for each N, batch and side; for each N also of the native tower within it."""
    found: dict[str, Any] = {"draws": {}, "batch": {}, "side": {}, "tower": {}}
    for n in DRAWS:
        other = models.changed(draws=n)
        found["draws"][str(n)] = _steps(other, models.images(), rounds, names)
        found["tower"][str(n)] = tower_seconds(other, models.images(), rounds)
    for batch in BATCHES:
        found["batch"][str(batch)] = _steps(models, models.images(batch=batch), rounds, names)
    for share in SIDES:
        other = models.changed(side=round(share * models.size.side))
        found["side"][str(other.size.side)] = _steps(other, other.images(), rounds, names)
    return found


def _steps(models: Models, images: Tensor, rounds: int, names: Sequence[str]) -> dict[str, Any]:
    calls = {name: partial(make(name, models).step, images) for name in names}
    return {name: t.to_dict() for name, t in take_turns(calls, rounds, models.device).items()}


def tower_seconds(models: Models, images: Tensor, rounds: int) -> dict[str, list[float]]:
    """Time of the native tower within whole steps, forward and backward, and the number of its calls."""
    contestant = Ours(models)
    modules, recipe = contestant.trainer.step_modules, models.recipe
    assert modules.teacher is not None
    watched = _Watched(modules._parts["tower"].network, images)
    modules.step = _native.Step(
        watched,
        modules._parts["denoiser"].network,
        modules.bridge,
        modules.teacher.schedule,
        loss=recipe.loss,
        draw_weights=list(recipe.weights()),
    )
    found: dict[str, list[float]] = {"wall": [], "cpu": [], "calls": []}
    for number in range(rounds + 1):
        watched.reset()
        contestant.step(images)
        if number:  # the first one warms up
            for name, value in zip(found, (watched.wall, watched.cpu, watched.calls), strict=True):
                found[name].append(value)
    return found


class _Watched:
    """The native tower as a timed autograd function."""

    def __init__(self, tower: Any, images: Tensor) -> None:
        self.tower, self.device = tower, images.device
        # Autograd needs an input that requires a gradient: the tower fills those of its weights itself.
        self.handle = torch.zeros((), device=images.device, requires_grad=True)
        self.reset()

    def reset(self) -> None:
        self.wall, self.cpu, self.calls = 0.0, 0.0, 0

    def __call__(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = _Tapped.apply(pixels, self.handle, self)
        return tokens

    def clocked(self, call: Any) -> Any:
        """The result of ``call``, whose time is added to the totals."""
        wait(self.device)
        wall, cpu = time.perf_counter(), time.process_time()
        result = call()
        wait(self.device)
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu
        self.calls += 1
        return result


class _Tapped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pixels: Tensor, handle: Tensor, watched: _Watched) -> Tensor:
        ctx.watched = watched
        tokens, ctx.recording = watched.clocked(lambda: watched.tower.record(pixels))
        return tokens  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        ctx.watched.clocked(lambda: ctx.watched.tower.backward(ctx.recording, gradient))
        return None, torch.zeros_like(ctx.watched.handle), None
