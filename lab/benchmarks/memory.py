"""Peak memory of each contestant's step, each in a separate process.

``python -m lab.benchmarks.memory SIZE PRECISION CONTESTANT DEVICE`` prints one line of JSON.
"""

import contextlib
import gc
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from diva_rs.errors import DeviceError
from lab.benchmarks.contestants import NAMES, make
from lab.benchmarks.models import Models, quiet
from lab.benchmarks.sizes import find


def memory(size: str, precision: str, device: str = "cpu", names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    """GiB before the first step, with models and optimizer loaded, and at the peak of two steps.

    Every contestant holds SGD's momentum. On the CPU the figure is the resident memory of the whole process;
    on CUDA it is what PyTorch allocated. All but "official" load the frozen networks in the dtype of the
    computation and no text encoder. "plain" computes its draws one after another, which needs the least.

    Raises:
        DeviceError: a process failed, for example for lack of memory; with its last line of output.
    """
    found = {}
    for name in names:
        command = [sys.executable, "-m", "lab.benchmarks.memory", size, precision, name, device]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message: the system may have ended it"])[-1]
            raise DeviceError(f"{name} at size {size} ended with code {done.returncode}: {last}")
        found[name] = json.loads(done.stdout.splitlines()[-1])
    return {"gib": found}


def measure(size: str, precision: str, name: str, device: str) -> dict[str, float]:
    """The figures of one contestant in this process.

    >>> figures = measure("tiny", "fp32", "ours", "cpu")
    >>> 0 < figures["before"] <= figures["peak"]
    True
    """
    with quiet():
        models = Models(find(size), precision, device)
        if name != "official":
            models = models.only_what_is_needed()
        contestant, images = make(name, models), models.images()
        state = [torch.zeros_like(p) for p in contestant.parameters().values()] if "ours" not in name else []
        gc.collect()
        cuda = models.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(models.device)
        else:
            forget_peak()
        before = torch.cuda.memory_allocated(models.device) / 2**30 if cuda else resident("VmRSS")
        for _ in range(2):
            contestant.step(images)
        peak = torch.cuda.max_memory_allocated(models.device) / 2**30 if cuda else resident("VmHWM")
    del state  # kept until the measurement is done
    return {"before": before, "peak": max(before, peak)}


def forget_peak() -> None:
    """From here on ``resident("VmHWM")`` is the peak; where that is not permitted, of the whole process.

    >>> forget_peak()
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def resident(name: str) -> float:
    """GiB of this process: "VmRSS" now, or "VmHWM" at the peak.

    >>> 0 < resident("VmRSS") <= resident("VmHWM")
    True
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:5])))
