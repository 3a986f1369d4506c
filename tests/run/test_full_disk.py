"""A disk that fills while a checkpoint is written: a clear error, and nothing lost once there is room."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import diva_rs
from builders.small import images, small_clip, small_teacher
from diva_rs import DataError
from diva_rs._base.checkpoint import load_state

TESTS = Path(__file__).parents[1]
FIELDS = {"steps": 4, "lr": 1e-2, "schedule": "constant", "checkpoint_every": 1, "log_every": 1}


def train(folder, callbacks=(), **given):
    loader = [images(2, seed=n) for n in range(4)]
    given = {"progress": False, **FIELDS, **given}
    return diva_rs.post_train(
        small_clip(), small_teacher(), loader, output_dir=folder, callbacks=callbacks, **given
    )


def check_that_it_goes_on(folder, straight):
    """What is left is whole and no more; with room again, the run ends in the bits of a straight one."""
    assert not [path for path in Path(folder).rglob("*") if path.name.endswith(".tmp")]
    for step in Path(folder, "checkpoints").iterdir():
        load_state(step)
    result, expected = train(folder), train(straight)
    for name, value in expected.clip.state_dict().items():
        assert torch.equal(result.clip.state_dict()[name], value), name
    assert [row["step"] for row in result.history] == [1, 2, 3, 4]


def test_files_that_may_not_grow(tmp_path):
    """The kernel refuses to write a file as large as before, as it does on a full disk or at a quota."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(step, metrics):
        if step == 2:
            largest = max(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file())
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, limits[1]))

    try:
        with pytest.raises(
            DataError, match=r"step-00000002 could not be written .*too large.*nothing at that"
        ):
            train(tmp_path / "run", [fill])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000001"]
    check_that_it_goes_on(tmp_path / "run", tmp_path / "straight")


def test_a_save_that_fails_does_not_hide_the_error_that_ended_the_run(tmp_path, caplog):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_and_fail(step, metrics):
        if step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
            raise RuntimeError("the caller's own")

    try:
        with pytest.raises(RuntimeError, match="the caller's own"):
            train(tmp_path / "run", [fill_and_fail])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    [record] = [record for record in caplog.records if "could not be written" in record.getMessage()]
    assert record.levelname == "WARNING" and "step-00000002" in record.getMessage()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000001"]
    check_that_it_goes_on(tmp_path / "run", tmp_path / "straight")


def may_mount():
    tried = subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False
    )
    return tried.returncode == 0


@pytest.mark.skipif(not may_mount(), reason="needs a user namespace that may mount a tmpfs")
def test_a_small_disk_that_fills(tmp_path):
    """A tmpfs of its own that somebody else fills between two checkpoints."""
    script = f"""
import os, sys
sys.path.insert(0, {str(TESTS)!r})
import torch
torch.set_num_threads(1)
from run.test_full_disk import *
disk = {str(tmp_path)!r} + "/disk"
filler = open(disk + "/somebody-elses", "wb")
def fill(step, metrics):
    if step == 2:
        left = os.statvfs(disk)
        filler.write(bytes(left.f_bavail * left.f_frsize - 40_000))
        filler.flush()
try:
    train(disk + "/run", [fill])
except DataError as err:
    assert "step-00000002 could not be written" in str(err) and "No space left" in str(err), err
else:
    raise AssertionError("the disk did not fill")
assert os.listdir(disk + "/run/checkpoints") == ["step-00000001"]
filler.truncate(0)
check_that_it_goes_on(disk + "/run", {str(tmp_path)!r} + "/straight")
"""
    (tmp_path / "disk").mkdir()
    mount = f'mount -t tmpfs -o size=8m tmpfs {tmp_path}/disk && exec {sys.executable} -c "$SCRIPT"'
    environment = {**os.environ, "SCRIPT": script, "OMP_NUM_THREADS": "1"}
    command = ["unshare", "-rm", "sh", "-c", mount]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
