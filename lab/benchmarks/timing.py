"""Times of calls that take turns, so that a change of the machine's speed hits all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Times:
    """Seconds of each round: by the clock, and of the process's processors (all threads together)."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """By the clock."""
        return statistics.median(self.wall)

    def to_dict(self) -> dict[str, list[float]]:
        """For JSON, to the microsecond."""
        return {"wall": [round(t, 6) for t in self.wall], "cpu": [round(t, 6) for t in self.cpu]}


def take_turns(
    calls: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device | None = None, warm: bool = True
) -> dict[str, Times]:
    """Call all of them in turn, ``rounds`` times over, after one round that is not counted.

    >>> times = take_turns({"a": lambda: None, "b": lambda: None}, rounds=3)
    >>> len(times["a"].wall), len(times["b"].cpu)
    (3, 3)
    """
    times = {name: Times() for name in calls}
    for number in range(rounds + warm):
        for name, call in calls.items():
            wait(device)
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            wait(device)
            if number or not warm:
                times[name].wall.append(time.perf_counter() - wall)
                times[name].cpu.append(time.process_time() - cpu)
    return times


def wait(device: torch.device | None) -> None:
    """For the work that a GPU still has."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
