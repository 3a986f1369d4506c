"""Loaders in trouble: workers that die, shards that end too early, and storage that is slow."""

import os
import signal
import tarfile
import time

import pytest
from torch.utils.data import DataLoader, Dataset

import diva_rs
from builders.pictures import encoded, write_tar
from builders.runs import Stop, same, stop_at
from builders.small import SIDE, images, small_clip, small_teacher
from diva_rs import DataError
from diva_rs.data import folder_loader, shard_loader

FIELDS = {"lr": 1e-2, "optimizer": "adamw", "schedule": "constant", "checkpoint_every": 1, "log_every": 1}


@pytest.fixture(scope="module")
def teacher():
    return small_teacher()


def train(teacher, loader, **given):
    return diva_rs.post_train(small_clip(), teacher, loader, **{"progress": False, **FIELDS, **given})


class Failing(Dataset):
    """Eight images, of which the sixth never comes: the worker that reads it does `fail`."""

    def __init__(self, fail):
        self.fail = fail

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 5:
            self.fail()
        return images(1, seed=index)[0]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def stumble():
    raise ValueError("this image was never any good")


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("fail", "error", "match"),
    [
        (die, DataError, r"a worker of the loader died .*fewer workers need less memory"),
        (stumble, ValueError, r"this image was never any good"),
    ],
)
def test_a_worker_that_fails_ends_the_run_and_no_step_is_lost(teacher, tmp_path, fail, error, match):
    loader = DataLoader(Failing(fail), batch_size=2, num_workers=1)
    with pytest.raises(error, match=match):
        train(teacher, loader, output_dir=tmp_path)
    result = train(teacher, DataLoader(Failing(lambda: None), batch_size=2), output_dir=tmp_path)
    straight = train(teacher, DataLoader(Failing(lambda: None), batch_size=2))
    assert same(result, straight) and result.report["steps"] == 4


@pytest.fixture
def shards(tmp_path):
    for shard in range(3):
        members = [(f"{shard}{n}.jpg", encoded(10 * shard + n)) for n in range(4)]
        write_tar(tmp_path / f"{shard}.tar", members)
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_over_shards_resumes_to_the_same_bits(teacher, shards, workers):
    def loader():
        return shard_loader(f"{shards}/{{0..2}}.tar", 2, SIDE, workers)

    with pytest.raises(Stop):
        train(teacher, loader(), steps=8, output_dir=shards / "run", callbacks=[stop_at(3)])
    result = train(teacher, loader(), steps=8, output_dir=shards / "run")
    straight = train(teacher, loader(), steps=8)
    assert same(result, straight)
    assert [row["loss"] for row in result.history] == [row["loss"] for row in straight.history]
    assert straight.history[-1]["epoch"] == 1


def test_a_shard_that_ends_too_early_in_the_middle_of_a_run(teacher, shards):
    second = shards / "1.tar"
    with tarfile.open(second) as tar:
        third = tar.getmembers()[2]
    os.truncate(second, third.offset_data + 100)

    def run(on_bad_image):
        loader = shard_loader(f"{shards}/{{0..2}}.tar", 2, SIDE, 0, 0, None, on_bad_image, shuffle=False)
        return loader, train(teacher, loader, output_dir=shards / on_bad_image)

    with pytest.raises(DataError, match=r"1.tar: truncated or damaged shard.*on_bad_image='skip'"):
        run("raise")
    kept = sorted(path.name for path in (shards / "raise" / "checkpoints").iterdir())
    assert "step-00000002" in kept  # the shard before it
    loader, result = run("skip")
    assert result.report["samples"] == 4 + 2 + 4 and list(loader.bad) == [str(second)]


class Slow:
    """Batches that come late."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __iter__(self):
        for seed in range(3):
            time.sleep(self.seconds)
            yield images(1, seed=seed)


def test_a_run_says_which_share_of_the_time_it_waits_for_data(teacher):
    result = train(teacher, Slow(0.2))
    for row in result.history:
        seconds = row["samples"] / row["samples_per_second"]
        assert row["waiting"] * seconds >= 0.199 and row["waiting"] <= 1


def test_prefetch_is_the_loaders(shards):
    image = shards / "images" / "a.jpg"
    image.parent.mkdir()
    image.write_bytes(encoded())
    for make, data in ((folder_loader, image.parent), (shard_loader, str(shards / "0.tar"))):
        assert make(data, workers=1, prefetch=5)._loader.prefetch_factor == 5
        assert make(data, workers=0, pin_memory=False)._loader.pin_memory is False
