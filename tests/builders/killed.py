"""Small runs that are killed and started again: `python -m builders.killed FOLDER [BUILDER]`.

An uninterrupted run in FOLDER/straight; then runs in FOLDER/0, FOLDER/1, ... killed fifty times, at random
moments and while files are written, and started again each time. With a BUILDER (dcr), its ``run``, and one
in FOLDER/killed that ends after the second and the fifth step. The starts are forks of one process that has
imported everything and computed nothing.
"""

import importlib
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import diva_rs._base.checkpoint as checkpoint
import diva_rs.run.loop  # noqa: F401  (imported here once, not in every fork)
from builders.small import images, small_clip, small_teacher
from diva_rs import post_train

KILLS = 50
FORK = multiprocessing.get_context("fork")
FIELDS = {"steps": 12, "batch": 4, "lr": 1e-2, "optimizer": "adamw", "checkpoint_every": 1, "log_every": 1}
DATA = [images(1, seed=n)[0] for n in range(10)]  # five batches a pass: accumulated steps cross its end


def run(folder: Path, teacher: Any) -> None:
    """The run. A process that is started anew has other random numbers, so the caller's are spoilt first."""
    torch.manual_seed(int.from_bytes(os.urandom(4), "little"))
    loader = DataLoader(DATA, batch_size=2, shuffle=True)
    post_train(small_clip(), teacher, loader, output_dir=folder, progress=False, **FIELDS)


def die_while_writing(calls: int, rng: random.Random) -> None:
    """End this process by SIGKILL at the given call that writes, syncs or renames: before it, halfway through
    the file, or after it."""
    left, moment = [calls], rng.choice(["before", "halfway", "after"])

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and moment == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            if left[0] == 0:
                if moment == "halfway" and len(args) > 1 and os.path.isfile(args[1]):
                    os.truncate(args[1], os.path.getsize(args[1]) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    os.fsync, os.replace = deadly(os.fsync), deadly(os.replace)
    checkpoint.save_file = deadly(checkpoint.save_file)


def killed_at(folder: Path, run: Callable[[Path, Any], None], steps: tuple[int, ...]) -> None:
    """``run`` (folder, callbacks) in FOLDER/straight, and in FOLDER/killed, where SIGKILL ends it after each
    of ``steps``, and it is started again each time."""
    for place, ends in (("straight", (0,)), ("killed", (*steps, 0))):
        for end in ends:

            def die(step: int, metrics: Any, end: int = end) -> None:
                if step == end:
                    os.kill(os.getpid(), signal.SIGKILL)

            child = FORK.Process(target=run, args=(folder / place, [die]))
            child.start()
            child.join()
            assert child.exitcode == (-signal.SIGKILL if end else 0), child.exitcode


def fifty(folder: Path) -> dict[str, int]:
    """Kill and start again; how often, and where."""
    rng = random.Random(int(os.environ.get("DIVA_KILL_SEED", "0")))
    teacher = small_teacher()
    began = time.perf_counter()
    straight = FORK.Process(target=run, args=(folder / "straight", teacher))
    straight.start()
    straight.join()
    assert straight.exitcode == 0
    whole = time.perf_counter() - began
    counts = {"by the clock": 0, "while writing": 0, "runs": 0, "starts": 0}
    while counts["by the clock"] + counts["while writing"] < KILLS:
        place = folder / str(counts["runs"])
        finished = False
        while not finished:
            counts["starts"] += 1
            enough = counts["by the clock"] + counts["while writing"] >= KILLS
            inside = rng.random() < 0.5
            calls, moment = rng.randrange(1, 80), rng.uniform(0.0, whole)

            def work(place: Path = place, calls: int = calls, inside: bool = inside and not enough) -> None:
                if inside:
                    die_while_writing(calls, rng)
                run(place, teacher)

            child = FORK.Process(target=work)
            child.start()
            if not enough and not inside:
                time.sleep(moment)
                child.kill()
            child.join()
            assert child.exitcode in (0, -signal.SIGKILL), child.exitcode
            finished = child.exitcode == 0
            if not finished:
                counts["while writing" if inside else "by the clock"] += 1
        counts["runs"] += 1
    return counts


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, *builder = sys.argv[1:]
    if builder:
        killed_at(Path(folder), importlib.import_module(f"builders.{builder[0]}").run, (2, 5))
    else:
        print(json.dumps(fifty(Path(folder))))
