"""Written files: their modes, paths from home, file systems that cannot sync, what others and kills leave."""

import errno
import json
import os
import stat
import subprocess
import sys
import tarfile
import time

import pytest
import torch
from PIL import Image

import diva_rs
from builders.small import images, small_clip, small_teacher
from diva_rs import DataError, Trainer, export
from diva_rs._base.checkpoint import load_state, load_weights, save_state, save_torch, save_weights
from diva_rs._base.files import as_path, names_in, write_json, write_text
from diva_rs._base.leftovers import sweep
from diva_rs.callbacks import JsonLines
from diva_rs.cli.flags import Options
from diva_rs.data import ImageFolder, ImageShards, LatentCache, folder_loader

OF_OTHERS = (".nfs000000000001", ".DS_Store", "._state.json", "Thumbs.db", "desktop.ini")
MACHINE = "a1b2c3"


@pytest.fixture
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.fixture(scope="module")
def state():
    return Trainer(small_clip(), small_teacher()).state_dict()


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def latents(folder, overwrite=False):
    (folder / "photos").mkdir(exist_ok=True)
    Image.new("RGB", (20, 20)).save(folder / "photos" / "a.png")
    loader = folder_loader(folder / "photos", batch=1, size=16, workers=0, scale=None)
    return LatentCache.build(loader, small_teacher(), folder / "latents", overwrite=overwrite)


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077], indirect=True, ids=oct)
def test_every_file_has_the_mode_that_the_umask_leaves(umask, tmp_path, state):
    diva_rs.post_train(
        small_clip(), small_teacher(), [images(2)], output_dir=tmp_path / "run", progress=False
    )
    diva_rs.report.write(tmp_path / "run")
    latents(tmp_path)
    save_state(tmp_path / "state", state)
    save_torch(tmp_path / "weights.pt", {"a": torch.ones(2)})
    found = {path.relative_to(tmp_path): mode(path) for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.suffix for path in found} >= {".safetensors", ".json", ".jsonl", ".html", ".txt", ".pt"}
    assert {path: each for path, each in found.items() if each != 0o666 & ~umask} == {}
    folders = {path: mode(path) for path in tmp_path.rglob("*") if path.is_dir()}
    assert {path: each for path, each in folders.items() if each != 0o777 & ~umask} == {}


@pytest.mark.parametrize("umask", [0o022], indirect=True)
@pytest.mark.parametrize("access", [0o664, 0o600, 0o640])
def test_a_replaced_file_keeps_its_mode_and_its_group(umask, tmp_path, state, access):
    writers = {
        "a.safetensors": lambda path: save_weights(path, {"a": torch.ones(2)}),
        "a.pt": lambda path: save_torch(path, {"a": torch.ones(2)}),
        "a.json": lambda path: write_json(path, {}),
        "state": lambda path: save_state(path, state),
    }
    for name, write in writers.items():
        write(tmp_path / name)
        for path in (tmp_path / name, *(tmp_path / name).glob("*")):
            path.chmod(access | 0o110 * path.is_dir())
            if os.geteuid() == 0:
                os.chown(path, -1, 12345)
        write(tmp_path / name)
        for path in (tmp_path / name, *(tmp_path / name).glob("*")):
            assert mode(path) == access | 0o110 * path.is_dir(), path
            assert os.geteuid() != 0 or path.stat().st_gid == 12345


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, beside the folder that the test works in."""
    home, here = tmp_path / "home", tmp_path / "here"
    (home / "photos").mkdir(parents=True)
    here.mkdir()
    Image.new("RGB", (20, 20)).save(home / "photos" / "0.png")
    with tarfile.open(home / "0.tar", "w") as shard:
        shard.add(home / "photos" / "0.png", "0.png")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    yield home
    assert list(here.iterdir()) == []


def _trained():
    diva_rs.post_train(small_clip(), small_teacher(), [images(2)], output_dir="~/a", progress=False)
    diva_rs.report.write("~/a", "~/page")


@pytest.mark.parametrize(
    "use",
    [
        lambda: [save_weights("~/a", {"a": torch.ones(2)}), load_weights("~/a")],
        lambda: save_torch("~/a", {"a": torch.ones(2)}),
        lambda: export.to_open_clip(small_clip(), "~/a.safetensors"),
        lambda: export.to_transformers(small_clip(), "~/a"),
        lambda: JsonLines("~/a").on_log(1, {"loss": 0.5}),
        lambda: [save_state("~/a", Trainer(small_clip(), small_teacher()).state_dict()), load_state("~/a")],
        lambda: ImageFolder("~/photos", size=8)[0],
        lambda: list(ImageShards("~/{0..0}.tar", size=8)),
        lambda: LatentCache.build([images(1)], small_teacher(), "~/a") and LatentCache.open("~/a"),
        _trained,
    ],
)
def test_a_tilde_is_the_home_folder(home, use):
    use()


def test_the_paths_of_the_command_line(home):
    class Both(Options):
        data: str
        clip: str

    read = Both(data="~/photos", clip="ViT-B-32:~/w.pt")
    assert (read.data, read.clip) == (f"{home}/photos", f"ViT-B-32:{home}/w.pt")
    assert Both(data="a~b", clip="ViT-B-32:openai").data == "a~b"
    assert as_path("~nobody-of-this-name/a").parts[0] == "~nobody-of-this-name"


@pytest.fixture
def disk(monkeypatch):
    """Call it with the error that syncing a folder ends in."""

    def fail(code):
        real = os.fsync

        def fsync(handle):
            if stat.S_ISDIR(os.fstat(handle).st_mode):
                raise OSError(code, os.strerror(code))
            real(handle)

        monkeypatch.setattr(os, "fsync", fsync)

    return fail


@pytest.mark.parametrize("code", ["EINVAL", "ENOTSUP", "EPERM", "EACCES", "EBADF", "ENOSYS"])
def test_a_file_system_that_cannot_sync_folders(disk, tmp_path, state, code):
    disk(getattr(errno, code))
    save_weights(tmp_path / "a.safetensors", {"a": torch.ones(2)})
    for _ in range(2):
        save_state(tmp_path / "state", state)
    latents(tmp_path)
    latents(tmp_path, overwrite=True)
    assert names_in(tmp_path) == ["a.safetensors", "latents", "photos", "state"]


def test_a_disk_that_fails_after_the_file_is_in_place(disk, tmp_path):
    disk(errno.EIO)
    with pytest.raises(DataError, match=r"a.txt was written, but may be lost"):
        write_text(tmp_path / "a.txt", "whole")
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_hidden_files_of_other_programs_do_no_harm(tmp_path, state):
    def strew(folder):
        for name in OF_OTHERS:
            (folder / name).touch()
        (folder / ".snapshot").mkdir(exist_ok=True)

    save_state(tmp_path / "state", state)
    export.to_transformers(small_clip(), tmp_path / "export")
    latents(tmp_path)
    for folder in ("state", "export", "latents"):
        strew(tmp_path / folder)
    save_state(tmp_path / "state", state)
    load_state(tmp_path / "state")
    export.to_transformers(small_clip(), tmp_path / "export")
    latents(tmp_path, overwrite=True)

    run = tmp_path / "run"
    given = {"output_dir": run, "progress": False, "checkpoint_every": 1, "schedule": "constant"}
    given |= {"evaluate": {"score": lambda clip: 1.0}, "best": "score"}
    for steps in (1, 2):
        result = diva_rs.post_train(small_clip(), small_teacher(), [images(2)], steps=steps, **given)
        for folder in (run, run / "checkpoints", run / "best", *(run / "checkpoints").glob("step-*")):
            strew(folder)
    assert result.report["steps"] == 2


def _ended():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_what_a_killed_writer_leaves_is_removed_by_the_next(tmp_path):
    alive, dead = os.getppid(), _ended()
    names = {
        f".a.json.{dead}.tmp": False,
        f".a.json.{alive}.tmp": True,
        f".a.json.{dead}-{MACHINE}.tmp": True,
    }
    names |= {f".b.json.{dead}.tmp": True, ".a.json.swp": True, "a.json.99.tmp": True}
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / ".tmpXy12Zq").touch()
    write_json(tmp_path / "a.json", {})
    assert {name: (tmp_path / name).exists() for name in names} == names
    hours_ago = time.time() - 2 * 3600
    os.utime(tmp_path / f".a.json.{dead}-{MACHINE}.tmp", (hours_ago, hours_ago))
    sweep(tmp_path)
    left = [f".a.json.{alive}.tmp", ".a.json.swp", "a.json", "a.json.99.tmp"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(left)


def test_a_writer_that_is_killed_leaves_one_folder_that_the_next_removes(tmp_path):
    """Libraries write temporary files beside the one that they are given."""
    script = (
        "import os, signal, sys; from pathlib import Path; from diva_rs._base.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as beside:\n"
        "    (beside.parent / '.tmpXy12Zq').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.json")], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    write_json(tmp_path / "a.json", {"whole": True})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"whole": True}
