"""Runs that go on: from any checkpoint to the same bits, past damaged ones, and not under other settings."""

import json
import logging
import multiprocessing
import os
import shutil
from contextlib import closing

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import diva_rs
from builders.runs import Stop, same, stop_at
from builders.small import SIDE, images, small_clip, small_teacher
from diva_rs import ConfigError, WeightsError
from diva_rs._base.checkpoint import load_state
from diva_rs.data import folder as data_folder
from diva_rs.data import folder_loader
from diva_rs.run.folder import RunFolder

FIELDS = {"steps": 6, "lr": 1e-2, "optimizer": "adamw", "schedule": "constant", "checkpoint_every": 2}
FIELDS |= {"keep": 3, "progress": False, "log_every": 1}
CLOCK = ("samples_per_second", "waiting")


@pytest.fixture(scope="module")
def four():
    """A loader of four batches: six steps need a pass and a half."""
    return [images(2, seed=n) for n in range(4)]


def train(teacher, loader, folder, clip=None, **given):
    clip = small_clip() if clip is None else clip
    return diva_rs.post_train(clip, teacher, loader, output_dir=folder, **{**FIELDS, **given})


def killed(teacher, loader, folder, at, **given):
    """A run that ends at a step, without the checkpoint that an exception would leave."""
    with pytest.raises(Stop):
        train(teacher, loader, folder, callbacks=[stop_at(at)], **given)
    if at % 2:
        shutil.rmtree(folder / "checkpoints" / f"step-{at:08d}")


def rows(folder):
    """The log without what depends on the clock."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in found]


@pytest.fixture(scope="module")
def straight(teacher, four, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return train(teacher, four, folder), folder


@pytest.mark.parametrize("at", range(1, 6))
def test_a_run_resumes_to_the_same_bits(teacher, four, straight, tmp_path, at):
    killed(teacher, four, tmp_path, at)
    result = train(teacher, four, tmp_path)
    assert same(result, straight[0])
    assert rows(tmp_path) == rows(straight[1])
    assert [row["step"] for row in result.history] == [1, 2, 3, 4, 5, 6]
    assert result.report["samples"] == straight[0].report["samples"] == 12


def test_only_the_last_checkpoints_and_the_best_are_kept(teacher, four, tmp_path):
    train(teacher, four, tmp_path, steps=3, checkpoint_every=1, keep=1)
    with closing(RunFolder(tmp_path)) as folder:
        assert folder.steps() == [3]
        folder.mark_best(3, 0.5)
    train(teacher, four, tmp_path, checkpoint_every=1, keep=2)
    with closing(RunFolder(tmp_path)) as folder:
        assert folder.steps() == [3, 5, 6] and folder.best() == {"step": 3, "score": 0.5}


def test_what_a_checkpoint_holds(teacher, four, straight):
    result, folder = straight
    state = load_state(folder / "checkpoints" / "step-00000006")
    named = {name for name, _ in result.clip.named_parameters() if name.startswith("visual.")}
    assert state["parameters"].keys() == named | {"projector.weight", "projector.bias"}
    progress = {"epoch": 1, "places": [[4]], "seen": 4, "samples": 12, "steps": 6}
    [_] = state["run"]["progress"].pop("prints")
    assert state["run"]["progress"] == progress
    facts = json.loads((folder / "run.json").read_text())
    assert facts["recipe_sha256"] == result.recipe.digest()
    [start] = facts["starts"]
    assert start["step"] == 0 and start["environment"]["torch"] == torch.__version__


def test_a_damaged_checkpoint_is_passed_over_and_said(teacher, four, straight, tmp_path, caplog):
    killed(teacher, four, tmp_path, 5)
    newest = tmp_path / "checkpoints" / "step-00000004"
    data = bytearray((newest / "parameters.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (newest / "parameters.safetensors").write_bytes(data)
    with caplog.at_level(logging.WARNING, "diva_rs"):
        result = train(teacher, four, tmp_path)
    assert "step-00000004/parameters.safetensors is damaged" in caplog.text
    assert "resuming the run in" in caplog.text and "at step 2" in caplog.text
    assert same(result, straight[0]) and rows(tmp_path) == rows(straight[1])
    assert (tmp_path / "checkpoints" / "damaged-step-00000004").is_dir()


def test_when_no_checkpoint_is_whole_nothing_is_discarded(teacher, four, tmp_path):
    killed(teacher, four, tmp_path, 5)
    for path in (tmp_path / "checkpoints").iterdir():
        os.truncate(path / "state.json", 3)
    match = r"no intact checkpoint is left .*state\.json is damaged.*resume=False"
    with pytest.raises(WeightsError, match=match):
        train(teacher, four, tmp_path)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    train(teacher, four, tmp_path, resume=False)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"lr": 1e-3}, r"\(lr was 0\.01, is 0\.001\): .*resume=\"force\""),
        ({"seed": 1, "draws": 3}, r"draws was 2, is 3; seed was 0, is 1"),
        ({"steps": 3}, r"steps=3, but the run in .* has done 4 steps already"),
        ({"teacher": True}, r"teacher_weights was \w+, is \w+"),
        ({"clip": True}, r"clip_frozen was \w+, is \w+"),
    ],
    ids=str,
)
def test_other_settings_are_refused_and_named(teacher, four, tmp_path, change, match):
    killed(teacher, four, tmp_path, 5)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    clip = small_clip(seed=3) if change.pop("clip", False) else small_clip()
    other = small_teacher()
    if change.pop("teacher", False):
        torch.nn.init.ones_(other.unet.conv_in.weight)
    start = {name: value.clone() for name, value in clip.state_dict().items()}
    with pytest.raises(ConfigError, match=match):
        train(other, four, tmp_path, clip, **change)
    assert all(torch.equal(value, start[name]) for name, value in clip.state_dict().items())
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_force_resumes_under_other_settings(teacher, four, tmp_path):
    killed(teacher, four, tmp_path, 5)
    result = train(teacher, four, tmp_path, lr=1e-3, resume="force")
    assert [row["lr"] for row in result.history] == [1e-2] * 4 + [1e-3] * 2
    starts = json.loads((tmp_path / "run.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, 4]


def test_more_steps_of_a_finished_run(teacher, four, straight, tmp_path):
    train(teacher, four, tmp_path, steps=4)
    assert same(train(teacher, four, tmp_path, steps=6), straight[0])
    cosine = tmp_path / "cosine"
    train(teacher, four, cosine, steps=2, schedule="cosine")
    with pytest.raises(ConfigError, match=r"steps was 2, is 3"):
        train(teacher, four, cosine, steps=3, schedule="cosine")


def test_a_finished_run_is_read_back(teacher, four, straight, tmp_path, caplog):
    train(teacher, four, tmp_path)

    def untouched():
        raise AssertionError("the loader was read")
        yield

    clip = small_clip()
    with caplog.at_level(logging.WARNING, "diva_rs"):
        result = train(teacher, untouched(), tmp_path, clip)
    assert same(result, straight[0]) and result.clip is clip
    assert [row["step"] for row in result.history] == [1, 2, 3, 4, 5, 6]
    assert "has done all its 6 steps" in caplog.text and "resume=False" in caplog.text


def test_one_pass_of_unknown_length_ends_once(teacher, four, tmp_path):
    def run(callbacks=()):
        return train(teacher, iter(four), tmp_path, steps=None, callbacks=callbacks)

    with pytest.raises(Stop):
        run([stop_at(3)])
    assert run().report["steps"] == 4
    assert run().report["steps"] == 4


def test_an_anchor_needs_the_clip_that_the_run_began_from(teacher, four, tmp_path):
    clip = small_clip()
    with pytest.raises(Stop):
        train(teacher, four, tmp_path, clip, anchor=0.1, callbacks=[stop_at(3)])
    with pytest.raises(ConfigError, match=r"anchor=0\.1 needs the CLIP .*load the model again"):
        train(teacher, four, tmp_path, clip, anchor=0.1)
    result = train(teacher, four, tmp_path, anchor=0.1)
    assert same(result, train(teacher, four, tmp_path / "straight", anchor=0.1))


def test_two_processes_do_not_share_a_folder(teacher, four, tmp_path):
    fork = multiprocessing.get_context("fork")
    ready, go = fork.Event(), fork.Event()
    child = fork.Process(target=lambda: (RunFolder(tmp_path), ready.set(), go.wait()), daemon=True)
    child.start()
    ready.wait()
    with pytest.raises(ConfigError, match="another process is writing into"):
        train(teacher, four, tmp_path)
    go.set()
    child.join()
    train(teacher, four, tmp_path, steps=1)  # the lock ends with its process


def test_what_a_killed_writer_left_is_swept_away(teacher, four, tmp_path):
    killed(teacher, four, tmp_path, 3)
    for left in ("checkpoints/.step-00000004.99999999.tmp", ".run.json.99999999.tmp"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "half").touch()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "lo')
    train(teacher, four, tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Ten plain pictures."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(10):
        Image.fromarray(np.full((36, 40, 3), 25 * i, np.uint8)).save(folder / f"{i}.png")
    return folder


def test_a_folder_is_not_read_again_up_to_the_place(teacher, photos, tmp_path, monkeypatch):
    def run(folder, **given):
        loader = folder_loader(photos, batch=2, size=SIDE, workers=0)
        return train(teacher, loader, folder, steps=8, checkpoint_every=1, **given)

    straight = run(tmp_path / "straight")
    with pytest.raises(Stop):
        run(tmp_path / "run", callbacks=[stop_at(7)])
    read, decode = [], data_folder.decode_pixels
    monkeypatch.setattr(
        data_folder, "decode_pixels", lambda path, *rest: read.append(path) or decode(path, *rest)
    )
    result = run(tmp_path / "run")
    assert same(result, straight) and rows(tmp_path / "run") == rows(tmp_path / "straight")
    assert len(read) == 2  # the eighth step's


@pytest.mark.parametrize("seeded", [True, False], ids=["generator", "plain"])
def test_a_shuffling_dataloader_gives_the_same_order_again(teacher, tmp_path, seeded, caplog):
    data = [images(1, seed=n)[0] for n in range(8)]

    def run(folder, **given):
        torch.manual_seed(int.from_bytes(os.urandom(4), "little"))  # whatever a new process has
        generator = torch.Generator().manual_seed(5) if seeded else None
        loader = DataLoader(data, batch_size=2, shuffle=True, generator=generator)
        return train(teacher, loader, folder, **given)

    straight = run(tmp_path / "straight")
    for at in (3, 5):  # in the first pass and in the second
        folder = tmp_path / str(at)
        with pytest.raises(Stop):
            run(folder, callbacks=[stop_at(at)])
        with caplog.at_level(logging.WARNING, "diva_rs"):
            assert same(run(folder), straight)
    assert "samples are read again and skipped; that they are the same depends" in caplog.text


def test_the_callers_random_numbers_are_left_alone(teacher, tmp_path):
    data = [images(1, seed=n)[0] for n in range(4)]
    clip = small_clip()
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    train(teacher, DataLoader(data, batch_size=2, shuffle=True), tmp_path, clip, steps=3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
