"""The machine and the date of a measurement, and the peak speed of matrix products."""

import datetime
import os
import platform
import subprocess
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import diva_rs
from lab.benchmarks.timing import take_turns

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "avx512_vnni", "sve", "asimd")


def stamp(device: torch.device) -> dict[str, Any]:
    """Date, commit, processor (and GPU), cores, threads and versions; no name of a host or a user.

    >>> sorted(stamp(torch.device("cpu")))[:5]
    ['commit', 'cores', 'cpu', 'date', 'device']
    """
    names, flags = _processor()
    found = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M"),
        "commit": commit(),
        "cpu": names,
        "flags": [flag for flag in _FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": round(os.getloadavg()[0], 1),  # of other processes: read before anything runs
        "torch": torch.__version__,
        "device": str(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["gpu"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return found


def commit() -> str:
    """The commit of this checkout; the package's version if git does not answer."""
    here = Path(__file__).parents[2]
    if not (here / "Cargo.toml").is_file():
        return f"diva-rs {diva_rs.__version__}"
    try:
        head = _git(here, "rev-parse", "--short", "HEAD")
        changed = _git(here, "status", "--porcelain", "--", "src", "python", "lab")
    except (OSError, subprocess.SubprocessError):
        return f"diva-rs {diva_rs.__version__}"
    return head + (" with changes" if changed else "")


def gemm_peak(
    dtype: torch.dtype,
    device: torch.device,
    sides: Iterable[int] = (1024, 2048, 4096),
    rounds: int = 5,
) -> float:
    """FLOP/s of the fastest square matrix product found.

    >>> gemm_peak(torch.float32, torch.device("cpu"), sides=[64], rounds=1) > 0
    True
    """
    best = 0.0
    for side in sides:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        times = take_turns({"": partial(torch.mm, a, b, out=out)}, rounds, device)
        best = max(best, 2 * side**3 / min(times[""].wall))
    return best


def _processor() -> tuple[str, set[str]]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), set()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", fields.get("Features", ""))
    return fields.get("model name", platform.machine()), set(flags.split())


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()
