"""Files are whole or not there: failures during a write, damaged files, folders that hold other work."""

import os
import signal

import pytest
import torch

import diva_rs._base.checkpoint as checkpoint
from builders.small import images, small_clip, small_teacher
from diva_rs import DataError, Recipe, Trainer, WeightsError
from diva_rs._base.files import write_text

OLD, NEW = {"a": torch.zeros(3), "b": torch.ones(2, 2)}, {"a": torch.full((3,), 7.0)}
STATE_FILES = ["manifest.json", "optimizer.safetensors", "parameters.safetensors", "state.json"]


def state(value):
    return {
        "parameters": {"w": torch.full((2,), value)},
        "optimizer": {"clip.w.momentum_buffer": torch.zeros(2)},
        "counters": {"steps_done": int(value), "samples_seen": 0, "epoch": 0},
        "recipe": Recipe().to_dict(),
    }


def same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


class Breaks:
    """In the place of a function: works `after` times, then raises; `half` writes half a file first."""

    def __init__(self, function, after=0, half=False):
        self.function, self.left, self.half = function, after, half

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left >= 0:
            return self.function(*args, **kwargs)
        if self.half:
            self.function(*args, **kwargs)
            path = args[1]
            os.truncate(path, os.path.getsize(path) // 2)
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("step", ["save_file", "fsync", "replace"])
def test_a_failed_write_of_weights_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "w.safetensors"
    checkpoint.save_weights(path, OLD)
    with monkeypatch.context() as patch:
        owner = checkpoint if step == "save_file" else os
        patch.setattr(owner, step, Breaks(getattr(owner, step), half=step == "save_file"))
        with pytest.raises(DataError, match=r"w\.safetensors could not be written \(.*No space left"):
            checkpoint.save_weights(path, NEW)
    same(checkpoint.load_weights(path), OLD)
    assert names(tmp_path) == ["w.safetensors"]
    checkpoint.save_weights(path, NEW)
    same(checkpoint.load_weights(path), NEW)


def test_an_exception_of_any_kind_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_weights(tmp_path / "w.safetensors", NEW)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_state(tmp_path / "checkpoint", state(1))
    assert names(tmp_path) == []


@pytest.mark.parametrize("renames", range(6))
def test_a_checkpoint_is_replaced_as_a_whole(tmp_path, monkeypatch, renames):
    """Four files, the old folder aside, the new one into place: the disk fails at each of these renames."""
    folder = tmp_path / "checkpoint"
    checkpoint.save_state(folder, state(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", Breaks(os.replace, after=renames))
        with pytest.raises(DataError, match=r"could not be written .*No space left.*was changed"):
            checkpoint.save_state(folder, state(2))
    assert names(tmp_path) == ["checkpoint"] and names(folder) == STATE_FILES
    assert checkpoint.load_state(folder)["counters"]["steps_done"] == 1
    checkpoint.save_state(folder, state(2))
    assert checkpoint.load_state(folder)["counters"]["steps_done"] == 2
    assert names(tmp_path) == ["checkpoint"]


def test_a_machine_that_goes_down_between_the_renames_loses_nothing(tmp_path):
    folder = tmp_path / "checkpoint"
    checkpoint.save_state(folder, state(1))
    folder.rename(tmp_path / ".checkpoint.old")  # what is on disk at that moment
    assert checkpoint.load_state(folder)["counters"]["steps_done"] == 1
    checkpoint.save_state(folder, state(2))
    assert checkpoint.load_state(folder)["counters"]["steps_done"] == 2
    assert names(tmp_path) == ["checkpoint"]


def test_a_state_comes_back_as_it_was(tmp_path):
    trainer = Trainer(small_clip(), small_teacher(), Recipe(optimizer="adamw", betas=(0.9, 0.95)))
    trainer.step(images(2))
    before = trainer.state_dict()
    after = checkpoint.load_state(checkpoint.save_state(tmp_path / "checkpoint", before))
    same(after["parameters"], before["parameters"])
    same(after["optimizer"], before["optimizer"])
    assert (after["counters"], after["recipe"]) == (before["counters"], before["recipe"])


def test_a_folder_that_is_no_checkpoint_is_not_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"thesis holds 'chapter1.tex', which is not part of a checkpoint"):
        checkpoint.save_state(tmp_path / "thesis", state(1))
    with pytest.raises(DataError, match="thesis could not be written"):
        write_text(tmp_path / "thesis", "a file in the place of a folder")
    with pytest.raises(DataError, match=r"chapter1.tex/w could not be written"):
        checkpoint.save_weights(tmp_path / "thesis" / "chapter1.tex" / "w", OLD)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years of work"
    assert names(tmp_path) == ["thesis"] and names(tmp_path / "thesis") == ["chapter1.tex"]


def test_shared_and_strided_tensors_are_written_as_they_look(tmp_path):
    base = torch.arange(6.0).view(2, 3)
    weights = {"whole": base, "turned": base.T, "row": base[1], "again": base, "none": torch.zeros(0)}
    checkpoint.save_weights(tmp_path / "w", weights)
    same(checkpoint.load_weights(tmp_path / "w"), weights)


DAMAGE = {
    "missing": lambda path, data: path.unlink(),
    "empty": lambda path, data: path.write_bytes(b""),
    "truncated": lambda path, data: path.write_bytes(data[: len(data) // 2]),
    "without its last byte": lambda path, data: path.write_bytes(data[:-1]),
    "one bit": lambda path, data: path.write_bytes(data[:-1] + bytes([data[-1] ^ 1])),
    "noise": lambda path, data: path.write_bytes(bytes(range(256)) * 4),
    "a huge header": lambda path, data: path.write_bytes((2**62).to_bytes(8, "little") + b"{}"),
    "a folder": lambda path, data: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("file", STATE_FILES)
def test_damaged_checkpoints_name_the_file(tmp_path, file, how):
    folder = checkpoint.save_state(tmp_path / "checkpoint", state(1))
    if file == "manifest.json" and how in ("without its last byte", "one bit"):
        how = "truncated"  # the last byte of a text file is its newline
    DAMAGE[how](folder / file, (folder / file).read_bytes())
    with pytest.raises(WeightsError, match=rf"checkpoint/{file} (cannot be read|is damaged): \S"):
        checkpoint.load_state(folder)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("null", "it has no 'counters'"),
        ('{"counters": {"epoch": 0}}', "it has no 'recipe'"),
        ("[" * 100_000, "cannot be read"),
        ("\ud800", "cannot be read"),
    ],
    ids=["null", "half", "deep", "no text"],
)
def test_a_state_file_of_other_content(tmp_path, text, match):
    folder = checkpoint.save_state(tmp_path / "checkpoint", state(1))
    (folder / "state.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    checkpoint.write_manifest(folder, STATE_FILES[1:])
    with pytest.raises(WeightsError, match=rf"checkpoint/state\.json .*{match}"):
        checkpoint.load_state(folder)


def test_ctrl_c_in_the_middle_of_an_update_waits_for_it(ctrl_c):
    """Otherwise a checkpoint would hold the weights of one step more than it counts."""
    trainer = Trainer(small_clip(), small_teacher(), Recipe(lr=1e-2))
    expected = Trainer(small_clip(), small_teacher(), Recipe(lr=1e-2))
    expected.step(images(2))
    inner = trainer._stages.optimizer

    class Pressed:
        def update(self, *args):
            norm = inner.update(*args)
            ctrl_c()
            return norm

    trainer.accumulate(images(2))
    trainer._stages.optimizer = Pressed()
    with pytest.raises(KeyboardInterrupt):
        trainer.apply()
    assert (trainer.steps_done, trainer.pending) == (1, 0)
    same(trainer.clip.state_dict(), expected.clip.state_dict())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_equal_weights_and_facts_give_equal_files(tmp_path):
    """safetensors writes its metadata in another order each time."""
    weights = {"b é": torch.ones(3), 'a"\n': torch.zeros(2, 2)}
    for number in range(8):
        checkpoint.save_weights(tmp_path / f"{number}.safetensors", weights, {"of": "é\t"})
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 1
    same(checkpoint.load_weights(tmp_path / "0.safetensors"), weights)
