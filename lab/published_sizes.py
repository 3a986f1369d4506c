"""Run the slow tests at published size, each in its own process, and record their figures.

`python -m lab published-sizes [WORD ...]` runs the tests whose names contain one of the words (by default
all) and updates `benches/results/published-sizes.md`, and the figures as JSON beside it.
"""

import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benches" / "results" / "published-sizes"


def main(words: list[str]) -> int:
    pytest = [sys.executable, "-m", "pytest", "-m", "slow and parity", "tests"]
    listing = subprocess.run([*pytest, "--collect-only"], cwd=ROOT, capture_output=True, text=True)
    there = [line for line in listing.stdout.splitlines() if "::" in line]
    tests = [test for test in there if not words or any(word in test for word in words)]
    if not tests:
        print(listing.stdout + listing.stderr, "no test was selected", file=sys.stderr)
        return 1
    file = RESULTS.with_suffix(".json")
    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    known = {test: entry for test, entry in known.items() if test in there}
    failed = 0
    for test in tests:
        print(test, flush=True)
        where = stamp()
        with tempfile.TemporaryDirectory() as folder:
            figures = Path(folder) / "figures"
            run = subprocess.run(
                [sys.executable, "-m", "pytest", "-m", "slow", test],
                cwd=ROOT,
                env={**os.environ, "DIVA_FIGURES": str(figures)},
            )
            lines = figures.read_text().splitlines() if figures.exists() else []
        failed += run.returncode != 0
        known[test] = {
            "passed": run.returncode == 0,
            **where,
            "figures": [json.loads(line) for line in lines],
        }
        RESULTS.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
        RESULTS.with_suffix(".md").write_text(page(known))
    return failed


def stamp() -> dict[str, str]:
    """Date, machine and commit."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    changes = subprocess.run([*git, "status", "--porcelain", "src", "python"], capture_output=True, text=True)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "machine": machine(),
        "commit": commit.stdout.strip() + (" with changes" if changes.stdout.strip() else ""),
    }


def machine() -> str:
    """Processor, cores and memory."""
    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {gib:.0f} GiB"


def page(known: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# Published sizes",
        "",
        "Random weights, CPU, made by `python -m lab published-sizes`. Errors are relative, in the norm",
        "of the whole tensor, against the library in float32; last is the library's own error in bf16.",
        "A loss is one number, in which the errors of all pixels cancel by chance: one pair does not show",
        "which is more exact. Over many draws ours is (`tests/native/test_native_unet.py`).",
        "",
    ]
    stamps: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for entry in known.values():
        stamps.setdefault((entry["date"], entry["machine"], entry["commit"]), []).append(entry)
    for (date, where, commit), entries in sorted(stamps.items()):
        lines += [
            f"## {date}, {where}, commit {commit}",
            "",
            "| what | part | error | bound | library in bf16 |",
        ]
        lines.append("|---|---|---|---|---|")
        for entry in entries:
            for figure in entry["figures"]:
                lines.append(row(figure))
            if not entry["passed"]:
                lines.append("| | a check of the lines above **failed** | | | |")
        lines.append("")
    return "\n".join(lines)


def row(figure: dict[str, Any]) -> str:
    if "gib" in figure:
        return f"| {figure['what']} | {figure['part']} | {figure['gib']:.2f} GiB | | |"
    own = "" if figure["own"] is None else f"{figure['own']:.2e}"
    numbers = f"{figure['error']:.2e} | {figure['bound']:.2e} | {own}"
    return f"| {figure['what']} | {figure['part']} | {numbers} |"
