"""Times of calls in turns, so that a change of the machine's speed affects all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Times:
    """Seconds of each round: wall time, and CPU time of all threads together."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Of the wall times."""
        return statistics.median(self.wall)

    def to_dict(self) -> dict[str, list[float]]:
        """For JSON, to the microsecond."""
        return {"wall": [round(t, 6) for t in self.wall], "cpu": [round(t, 6) for t in self.cpu]}


def take_turns(
    calls: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device | None = None, warm: bool = True
) -> dict[str, Times]:
    """Call all of them in turn, ``rounds`` times, after one round that is not counted.

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
    """Wait until the GPU has finished its work."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
