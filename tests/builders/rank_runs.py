"""Runs over several ranks on one machine: `python -m builders.rank_runs FOLDER NAME...`.

The parent imports once and forks the ranks of each run, which find each other by the variables that torchrun
sets. Rank r of a run leaves what it returned in FOLDER/NAME.r.pt, and what it wrote in FOLDER/NAME.r.log.
"""

import json
import multiprocessing
import os
import signal
import socket
import sys
import tarfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from builders import rank_batches, rank_endings
from builders.rank import two_ranks
from builders.rank_batches import photos
from builders.rank_train import train
from builders.small import images

LIMIT = 60.0  # seconds within which the loss of a rank must have ended the others

RUNS: dict[str, Callable[[Path, int], Any]] = {
    # Ten steps, of six batches each.
    "straight": lambda place, world: train(),
    "low_rank": lambda place, world: train(low_rank=2, low_rank_bias=True, lr=1e-2),
    # 50 steps of two batches in float64.
    "fifty": lambda place, world: train(batch=4, steps=50),
    # Every rank begins with another CLIP, or has another learning rate.
    "other_weights": lambda place, world: train(seed=int(os.environ.get("RANK", 0)), steps=2),
    "other_recipe": lambda place, world: train(lr=0.1 + int(os.environ["RANK"])),
    # A DataLoader that gives every rank all images, and a list that every rank has.
    "undivided": lambda place, world: train(
        DataLoader(TensorDataset(images(60, dtype=torch.float64)), batch_size=2, shuffle=True)
    ),
    "same_batches": lambda place, world: train([images(2, seed=i, dtype=torch.float64) for i in range(4)]),
    "two_ranks": two_ranks,
    **{
        name: run
        for module in (rank_batches, rank_endings)
        for name, run in vars(module).items()
        if "world" in getattr(run, "__annotations__", ())
    },
}


def rank(name: str, number: int, world: int, port: int, place: Path) -> None:
    """What one forked process does: `RUNS[name]`, with its output in files."""
    warnings.simplefilter("ignore")
    log = os.open(place / f"{name}-{world}.{number}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if world > 1:
        known = {"RANK": number, "WORLD_SIZE": world, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in known.items()})
    code = 0
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell's children ignore it
    try:
        torch.save(RUNS[name](place, world), place / f"{name}-{world}.{number}.pt")
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def go(name: str, world: int, place: Path) -> dict[str, Any]:
    """Fork the ranks of a run; their exit codes, and the seconds from the first end to the last."""
    fork = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    ranks = [fork.Process(target=rank, args=(name, number, world, port, place)) for number in range(world)]
    for process in ranks:
        process.start()
    ends: dict[int, float] = {}
    while len(ends) < world and (not ends or time.monotonic() < min(ends.values()) + LIMIT):
        for number, process in enumerate(ranks):
            if number not in ends and process.exitcode is not None:
                ends[number] = time.monotonic()
        time.sleep(0.02)
    for process in ranks:
        if process.exitcode is None:
            process.kill()
    codes = [process.exitcode for process in ranks]
    return {"codes": codes, "seconds": max(ends.values()) - min(ends.values())}


def main() -> None:
    """The runs named on the command line, as NAME-WORLD, one after the other."""
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    photos(place / "photos", 11)
    for number, count in enumerate((5, 3, 1)):
        with tarfile.open(place / f"{number}.tar", "w") as shard:
            for i in range(count):
                shard.add(place / "photos" / f"{i}.png", f"{number}{i}.png")
    found = {}
    for run in sys.argv[2:]:
        name, world = run.rsplit("-", 1)
        found[run] = go(name, int(world), place)
    (place / "runs.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
