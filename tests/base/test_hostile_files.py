"""Files that are damaged, made to harm, or no files at all: a result or an exception of diva_rs.

`make fuzz` runs many more of the same cases.
"""

import contextlib
import io
import os
import random
import shutil

import pytest
import torch

from diva_rs.errors import DivaError
from fuzz.engine import run
from fuzz.payloads import payloads
from fuzz.places import PLACES
from fuzz.readers import READERS

pytestmark = pytest.mark.hostile

CASES = 540
# An empty configuration is one, and no bit keeps root from reading.
READABLE = {"empty", "renamed", "another_file", "sparse", "unreadable" if os.geteuid() == 0 else ""}


@pytest.mark.timeout(900)  # a busy machine is no failure
def test_damaged_files(tmp_path):
    """In a child process: an abort or a hang is a failure with the number of its case."""
    report = run("files", CASES, keep=tmp_path)
    assert not report.failures, f"{report}\nsaved in {tmp_path}"
    assert report.cases == CASES
    for reader in READERS:  # the damage reaches the readers' own checks too
        assert any(outcome.startswith(f"{reader}: ") for outcome in report.outcomes), f"{reader}\n{report}"
    refused = sum(count for outcome, count in report.outcomes.items() if outcome.endswith("Error"))
    assert CASES // 10 < report.cases - refused < CASES // 2, report


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder of good files per reader."""
    root = tmp_path_factory.mktemp("good")
    for name, reader in READERS.items():
        (root / name).mkdir()
        reader.make(root / name)
        reader.read(root / name)
    return root


def test_the_payloads_are_live(tmp_path):
    """A reader that is not careful runs their code."""
    files = payloads(tmp_path / "marker")
    with contextlib.suppress(Exception):
        torch.load(io.BytesIO(files["torch, among weights"]), weights_only=False)
    assert (tmp_path / "marker").is_dir()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_no_pickle_is_run_wherever_a_file_is_read(good, tmp_path, name):
    marker = tmp_path / "code was run"
    files = [path.relative_to(good / name) for path in sorted((good / name).rglob("*")) if path.is_file()]
    for number, (kind, data) in enumerate(payloads(marker).items()):
        # Every payload in every file where there are few files, in another one each where there are many.
        for file in files if len(files) <= 3 else files[number :: len(payloads(marker))]:
            folder = shutil.copytree(good / name, tmp_path / f"{number} {file.name}")
            (folder / file).write_bytes(data)
            with contextlib.suppress(DivaError):
                READERS[name].read(folder)
            assert not marker.exists(), f"{file} as {kind} ran code"
            shutil.rmtree(folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["checkpoint", "weights", "config", "images", "shard", "latents"])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_something_else_in_the_place_of_a_file(good, tmp_path, name, place):
    for file in sorted(path.relative_to(good / name) for path in (good / name).rglob("*") if path.is_file()):
        folder = shutil.copytree(good / name, tmp_path / f"{name} {file.name}")
        place(folder / file, random.Random(0))
        try:
            READERS[name].read(folder)
        except DivaError as err:
            assert str(folder) in str(err) or "no image" in str(err), err
        else:
            assert place.__name__ in READABLE or name in ("images", "shard"), f"{file} was read"
