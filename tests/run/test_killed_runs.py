"""A run that is killed again and again, and started again each time, ends in the bits of one that is not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.invariant

TESTS = Path(__file__).parents[1]
STATE = ("parameters.safetensors", "optimizer.safetensors")


def command(plan, folder):
    paths = [str(TESTS), str(TESTS.parent / "python"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    return {"args": [sys.executable, "-m", "builders.killed", plan, str(folder)], "env": environment}


def outcome(folder):
    """Everything that a run leaves and that does not depend on the clock."""
    files = [folder / "clip.safetensors", folder / "projector.safetensors"]
    newest = folder / "checkpoints" / "step-00000012"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["samples_per_second"], row["waiting"]
    left = sorted(path.name for path in folder.rglob("*") if path.name.endswith((".tmp", ".old")))
    return {file.name: file.read_bytes() for file in [*files, *(newest / name for name in STATE)]}, rows, left


@pytest.mark.timeout(600)
def test_fifty_kills_change_no_bit(tmp_path):
    done = subprocess.run(**command("fifty", tmp_path), capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = json.loads(done.stdout)
    print(counts)
    assert counts["by the clock"] + counts["while writing"] >= 50
    assert min(counts["by the clock"], counts["while writing"]) >= 10
    weights, rows, left = outcome(tmp_path / "straight")
    assert [row["step"] for row in rows] == list(range(1, 13)) and not left
    for number in range(counts["runs"]):
        found = outcome(tmp_path / str(number))
        assert found[1] == rows and found[2] == []
        for name, data in weights.items():
            assert found[0][name] == data, f"{name} of run {number}"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_processes_that_are_killed_and_started_anew(tmp_path):
    """The same with a new Python for each start."""
    subprocess.run(**command("once", tmp_path / "straight"), check=True, capture_output=True, timeout=200)
    log = tmp_path / "killed" / "metrics.jsonl"
    for rows in (2, 5, 9):
        process = subprocess.Popen(**command("once", tmp_path / "killed"))
        while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= rows):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    subprocess.run(**command("once", tmp_path / "killed"), check=True, capture_output=True, timeout=200)
    starts = json.loads((tmp_path / "killed" / "run.json").read_text())["starts"]
    assert len(starts) >= 2
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "straight")
