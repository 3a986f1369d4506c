"""Starts `builders.rank_runs` and reads what it left."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).parents[1]


def environment() -> dict[str, str]:
    """One thread per rank; the tests' own modules can be imported."""
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Whatever starts the tests may itself have told them that they are one of several ranks.
    known = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
    own = {name: value for name, value in os.environ.items() if name not in known}
    return {**own, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


class Runs:
    """The runs NAME-WORLD, done in ``place``."""

    def __init__(self, place: Path, *runs: str) -> None:
        self.place = place
        command = [sys.executable, "-m", "builders.rank_runs", str(place), *runs]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=800)
        assert done.returncode == 0, done.stderr
        self.ends = json.loads((place / "runs.json").read_text())

    def log(self, run: str, rank: int = 0) -> str:
        """What a rank wrote on its standard streams."""
        return (self.place / f"{run}.{rank}.log").read_text()

    def of(self, run: str) -> list[dict[str, Any]]:
        """What each rank of a run came to."""
        codes = self.ends[run]["codes"]
        assert not any(codes), self.log(run, max(range(len(codes)), key=lambda rank: abs(codes[rank])))
        files = [self.place / f"{run}.{rank}.pt" for rank in range(len(codes))]
        return [torch.load(file, weights_only=True) for file in files]
