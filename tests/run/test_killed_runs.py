"""A run that is killed again and again, and started again each time, ends in the bits of one that is not."""

import json
import subprocess
import sys

import pytest

from builders.run_ranks import environment

pytestmark = pytest.mark.invariant

STATE = ("parameters.safetensors", "optimizer.safetensors")


def outcome(folder):
    """Everything that a run leaves and that does not depend on the clock."""
    files = sorted(folder.glob("*.safetensors"))
    newest = max((folder / "checkpoints").iterdir())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["samples_per_second"], row["waiting"]
    left = sorted(path.name for path in folder.rglob("*") if path.name.endswith((".tmp", ".old")))
    return {file.name: file.read_bytes() for file in [*files, *(newest / name for name in STATE)]}, rows, left


def killed(*arguments):
    command = [sys.executable, "-m", "builders.killed", *map(str, arguments)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", ["dcr", "genhancer", "unclip"])
def test_a_published_method_killed_in_both_halves_ends_in_the_same_bits(method, tmp_path):
    killed(tmp_path, method)
    weights, rows, left = outcome(tmp_path / "straight")
    assert outcome(tmp_path / "killed") == (weights, rows, left)
    assert {"clip.safetensors", "projector.safetensors", *STATE} <= weights.keys()
    assert len(rows) == 6 and not left
    if method == "dcr":
        assert all(("denoising" in row) == (row["step"] <= 3) != ("contrast" in row) for row in rows)


@pytest.mark.timeout(600)
def test_fifty_kills_change_no_bit(tmp_path):
    counts = json.loads(killed(tmp_path))
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
