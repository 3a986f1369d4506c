"""Two gloo ranks of one thread each against one process of two threads, on the same images.

The ranks are forked, and a process must not fork after it has used its threads. So `ranks` starts
``python -m lab.benchmarks.ranks SIZE ROUNDS TURNS``, which prints one line of JSON.
"""

import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from diva_rs.distributed import Ranks, session
from diva_rs.errors import DeviceError
from diva_rs.run.loader import ResumableLoader
from diva_rs.run.ranks.trainer import RankedTrainer
from diva_rs.step.trainer import Trainer
from lab.benchmarks.contestants import Ours
from lab.benchmarks.models import Models, quiet
from lab.benchmarks.sizes import Size, find


def ranks(size: str, rounds: int, turns: int = 3) -> dict[str, Any]:
    """Median seconds of a step of the same batch by one process and by two ranks, in turns."""
    command = [sys.executable, "-m", "lab.benchmarks.ranks", size, str(rounds), str(turns)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DeviceError(f"two ranks at size {size} ended with code {done.returncode}: {last}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def steps(ranks: Ranks, trainer: Trainer, given: dict[str, Any], number: int) -> dict[str, Any]:
    """Median seconds of a step of a rank's batch ``given``, and the bytes that were sent."""
    ranked = RankedTrainer(trainer, ranks)
    times = []
    enough = len(given["images"]) * ranks.world
    start = time.perf_counter()
    for each in ranked.rounds(ResumableLoader([given] * number, seed=0), epoch=0):
        ranked.train(each, pending=enough, complete=True)
        times.append(time.perf_counter() - start)
        start = time.perf_counter()
    trainer.discard()
    gradient = sum(parameter.nbytes for parameter in trainer.parameters().values())
    return {"seconds": statistics.median(times[1:]), "sent": gradient}  # the first step warms up


def apart(world: int, work: Callable[[Ranks], Any], threads: int = 1) -> Any:
    """The result of ``work`` on rank 0 of ``world`` forked ranks with ``threads`` threads each."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def rank(number: int) -> None:
        known = {"RANK": number, "WORLD_SIZE": world, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in known.items()})
        torch.set_num_threads(threads)
        with session() as ranks:
            found = work(ranks)
            if ranks.first:
                theirs.send(found)

    processes = [fork.Process(target=rank, args=(number,)) for number in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        sys.exit("a rank failed")
    return ours.recv()


def measure(size: Size, rounds: int, turns: int) -> dict[str, Any]:
    """One process and two ranks in turns, ``turns`` times over; ``2 * rounds + 1`` steps each time."""
    batch = max(2, size.batch)

    def work(ranks: Ranks) -> dict[str, Any]:
        with quiet():
            models, share = Models(size), batch // ranks.world
            first = ranks.rank * share
            given = {"images": models.images(ranks.rank, share), "ids": list(range(first, first + share))}
            return steps(ranks, Ours(models).trainer, given, 2 * rounds + 1)

    with quiet():  # imports the libraries once, before the forks
        one, two = [], []
    for _ in range(turns):
        one.append(apart(1, work, threads=2))
        two.append(apart(2, work, threads=1))
    return {
        "batch": batch,
        "one": [found["seconds"] for found in one],
        "two": [found["seconds"] for found in two],
        "sent": two[0]["sent"],
    }


if __name__ == "__main__":
    print(json.dumps(measure(find(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
