"""A disk that fills while a checkpoint is written: a clear error, and nothing lost once there is room."""

import resource
from pathlib import Path

import pytest
import torch

import diva_rs
from builders.small import images, small_clip, small_teacher
from diva_rs import DataError
from diva_rs._base.checkpoint import load_state

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


@pytest.fixture
def limit():
    """Call it with the largest size of a file, in bytes, or with None for the limit of before."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def set_to(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if size is None else size, before[1]))

    yield set_to
    set_to(None)


def test_files_that_may_not_grow(tmp_path, limit):
    """The kernel refuses to write a file as large as before, as it does on a full disk or at a quota."""

    def fill(step, metrics):
        if step == 2:
            largest = max(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file())
            limit(largest - 1)

    with pytest.raises(DataError, match=r"step-00000002 could not be written .*too large.*nothing at that"):
        train(tmp_path / "run", [fill])
    limit(None)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000001"]
    check_that_it_goes_on(tmp_path / "run", tmp_path / "straight")


def test_a_save_that_fails_does_not_hide_the_error_that_ended_the_run(tmp_path, caplog, limit):

    def fill_and_fail(step, metrics):
        if step == 2:
            limit(64)
            raise RuntimeError("the caller's own")

    with pytest.raises(RuntimeError, match="the caller's own"):
        train(tmp_path / "run", [fill_and_fail])
    limit(None)
    [record] = [record for record in caplog.records if "could not be written" in record.getMessage()]
    assert record.levelname == "WARNING" and "step-00000002" in record.getMessage()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000001"]
    check_that_it_goes_on(tmp_path / "run", tmp_path / "straight")
