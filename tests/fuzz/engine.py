"""Runs numbered cases in a child process, so that an abort or a hang is a failure that names its case.

A case is a function of (seed, number) alone, so each can be run again. The child writes the number of a case
into a journal before it runs the case, where the parent reads it if the child dies.
"""

import faulthandler
import importlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

TESTS = Path(__file__).resolve().parents[1]
MEMORY = 3 << 30  # bytes that reading may add to the child's address space


class Target(Protocol):
    """What can be fuzzed: a module's ``target(folder)`` makes one."""

    def warm_up(self) -> None:
        """Import and run everything once, before time and memory are limited."""

    def run(self, rng: random.Random) -> str:
        """Run one case; returns its outcome ("result", "DataError: images", ...) or raises AssertionError."""

    def keep(self, place: Path) -> None:
        """Save the input of the last case. If a case ends the process, the folder ``case`` is saved."""


@dataclass
class Report:
    """Counts of a run's outcomes, and every failure with the number of its case."""

    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.cases} cases, {len(self.failures)} failures"]
        lines += [f"  {count:6} {outcome}" for outcome, count in sorted(self.outcomes.items())]
        return "\n".join([*lines, *(f"FAILURE {failure}" for failure in self.failures)])


def run(
    target: str, cases: int, seed: int = 0, keep: Path | None = None, limit: float = 120.0, start: int = 0
) -> Report:
    """Run the cases ``start`` to ``start + cases`` of a target ("files", "native").

    ``keep`` is a folder for the input of failed cases; ``limit`` is in seconds per case.
    """
    report, last = Report(), start - 1
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        folder, journal = Path(scratch, "child"), Path(scratch, "journal")
        folder.mkdir()
        journal.touch()
        command = [sys.executable, "-m", "fuzz.engine", target, str(seed), str(start), str(start + cases)]
        command += [str(limit), str(folder), str(journal), str(keep or "")]
        done = subprocess.run(command, cwd=TESTS, capture_output=True, stdin=subprocess.DEVNULL)
        for line in journal.read_text().splitlines():
            last, *end = json.loads(line)
            for outcome, failure in [end] if end else []:  # no end: the case was begun
                report.cases += 1
                report.outcomes[outcome or "failure"] += 1
                if failure:
                    report.failures.append(f"{target} case {last} of seed {seed}: {failure}")
        if done.returncode != 0:
            tail = (done.stdout + done.stderr).decode(errors="replace")[-3000:]
            what = f"{target} case {last} of seed {seed} ended the process (exit code {done.returncode})"
            report.failures.append(f"{what}:\n{tail}")
            if keep is not None and (folder / "case").exists():
                place = keep / f"{target}-{seed}-{last}"
                shutil.copytree(folder / "case", place, symlinks=True, ignore=special)
    return report


def special(folder: str, names: list[str]) -> list[str]:
    """Those of a folder's entries that cannot be copied: pipes, sockets, devices, links that lead nowhere."""
    paths = {name: os.path.join(folder, name) for name in names}
    return [name for name, path in paths.items() if not (os.path.isfile(path) or os.path.isdir(path))]


def _child(target: str, numbers: list[int], limit: float, scratch: Path, journal: Path, keep: str) -> None:
    seed, start, stop = numbers
    made: Target = importlib.import_module(f"fuzz.{target}").target(scratch)
    made.warm_up()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    with open(journal, "a", buffering=1) as lines:
        for number in range(start, stop):
            lines.write(json.dumps([number]) + "\n")
            # Ends the process from another thread, even if the interpreter is held.
            faulthandler.dump_traceback_later(limit, exit=True)
            try:
                outcome, failure = made.run(random.Random(f"{target} {seed} {number}")), None
            except AssertionError as err:
                outcome, failure = None, str(err)
                if keep:
                    made.keep(Path(keep, f"{target}-{seed}-{number}"))
            faulthandler.cancel_dump_traceback_later()
            lines.write(json.dumps([number, outcome, failure]) + "\n")


if __name__ == "__main__":
    name, *numbers, seconds, folder, lines, kept = sys.argv[1:]
    os.environ["HF_HUB_OFFLINE"] = "1"
    _child(name, [*map(int, numbers)], float(seconds), Path(folder), Path(lines), kept)
