"""Runs numbered cases in a child process, so that an abort or a hang is a failure that names its case.

A case is a function of (seed, number) alone: any one can be run again. The child writes the number of the
case that it is about to run into a journal; when the child dies, the parent reads there what killed it and
goes on with the next case in a new child.
"""

import faulthandler
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

TESTS = Path(__file__).resolve().parents[1]
DEATHS = 6  # children that may die before the run is given up
MEMORY = 3 << 30  # bytes that reading may add to the child's address space


class Target(Protocol):
    """What can be fuzzed: a module's ``target(folder)`` makes one."""

    def warm_up(self) -> None:
        """Import and run everything once, before limits of time and memory hold."""

    def run(self, rng: random.Random) -> str:
        """Run one case; returns its outcome ("result", "DataError: images", ...) or raises AssertionError."""

    def keep(self, place: Path) -> None:
        """Save what the last case read, to be looked at later.

        When a case ends the process, the folder ``case`` in the target's own folder is saved.
        """


@dataclass
class Report:
    """What came of a run: how often each outcome, and every failure with its case's number."""

    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.cases} cases, {len(self.failures)} failures"]
        lines += [f"  {count:6} {outcome}" for outcome, count in sorted(self.outcomes.items())]
        return "\n".join([*lines, *(f"FAILURE {failure}" for failure in self.failures)])


def run(
    target: str, cases: int, seed: int = 0, keep: Path | None = None, limit: float = 60.0, start: int = 0
) -> Report:
    """Run the cases ``start`` to ``start + cases`` of a target ("files", "native").

    ``keep`` is a folder for the input of failed cases; ``limit`` the seconds that a case may take.
    """
    report, stop = Report(), start + cases
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        journal, log = Path(scratch, "journal"), Path(scratch, "log")
        for _ in range(DEATHS):
            if start >= stop:
                break
            journal.write_text("")
            folder = tempfile.mkdtemp(dir=scratch)
            command = [sys.executable, "-m", "fuzz.engine", target, str(seed), str(start), str(stop)]
            command += [str(limit), folder, str(journal), str(keep or "")]
            with open(log, "wb") as output:
                code = subprocess.run(
                    command, cwd=TESTS, stdout=output, stderr=output, stdin=subprocess.DEVNULL
                ).returncode
            last = start - 1
            for number, outcome, failure in _entries(journal):
                last = number
                if outcome is None and failure is None:
                    continue
                report.cases += 1
                report.outcomes[outcome or "failure"] += 1
                if failure:
                    report.failures.append(f"{target} case {number} of seed {seed}: {failure}")
            if code:
                report.cases += 1
                report.outcomes["death"] += 1
                if keep is not None and Path(folder, "case").exists():
                    shutil.copytree(
                        Path(folder, "case"), keep / f"{target}-{seed}-{last}", symlinks=True, ignore=special
                    )
                cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                tail = log.read_text(errors="replace")[-3000:]
                report.failures.append(
                    f"{target} case {last} of seed {seed} ended the process ({cause}):\n{tail}"
                )
            if last < start and code:
                report.failures.append("no case was reached")
                break
            start = last + 1
        else:
            report.failures.append(f"given up after {DEATHS} deaths, before case {start}")
    return report


def special(folder: str, names: list[str]) -> list[str]:
    """Those of a folder's entries that cannot be copied: pipes, sockets, devices, links that lead nowhere."""
    return [
        name
        for name in names
        if not os.path.isfile(path := os.path.join(folder, name)) and not os.path.isdir(path)
    ]


def _entries(journal: Path) -> Iterator[tuple[int, str | None, str | None]]:
    """(number, outcome, failure) of each line; the begin of a case has neither."""
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    yield from ((entry[0], *(entry[1:] or (None, None))) for entry in entries)


def _child(
    target: str,
    seed: int,
    start: int,
    stop: int,
    limit: float,
    scratch: Path,
    journal: Path,
    keep: Path | None,
) -> None:
    made: Target = importlib.import_module(f"fuzz.{target}").target(scratch)
    made.warm_up()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    with open(journal, "a", buffering=1) as lines:
        for number in range(start, stop):
            lines.write(json.dumps([number]) + "\n")
            # Ends the process from a thread of its own, whatever holds the interpreter.
            faulthandler.dump_traceback_later(limit, exit=True)
            try:
                outcome, failure = made.run(random.Random(f"{target} {seed} {number}")), None
            except AssertionError as err:
                outcome, failure = None, str(err)
                if keep is not None:
                    made.keep(keep / f"{target}-{seed}-{number}")
            faulthandler.cancel_dump_traceback_later()
            lines.write(json.dumps([number, outcome, failure]) + "\n")


if __name__ == "__main__":
    name, *numbers, seconds, folder, lines, kept = sys.argv[1:]
    os.environ["HF_HUB_OFFLINE"] = "1"
    _child(name, *map(int, numbers), float(seconds), Path(folder), Path(lines), Path(kept) if kept else None)
