"""``diva-rs train`` that measures while it trains."""

import json

import pytest
import torch
from safetensors.torch import load_file

from builders.benchmarks import photos_folder
from builders.diffusion import tiny_pipeline
from builders.mmvp import mmvp_folder
from diva_rs.cli import main
from diva_rs.cli.scores import bounds
from diva_rs.errors import ConfigError


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A teacher's folder, photographs in class folders, MMVP-VLM."""
    folder = tmp_path_factory.mktemp("scene")
    tiny_pipeline().save_pretrained(folder / "teacher")
    photos_folder(folder)
    (folder / "mmvp").mkdir()
    mmvp_folder(folder / "mmvp", pairs=1)
    return folder


@pytest.fixture
def train(scene, clip, tmp_path):
    """Runs ``diva-rs train`` for four steps with these flags; returns the exit code."""

    def run(*flags):
        models = ("--clip", clip, "--teacher", scene / "teacher", "--data", photos_of(scene))
        rest = ("--output-dir", tmp_path / "run", "--workers", "0", "--device", "cpu", "--no-progress")
        return main(["train", *map(str, (*models, *rest, "--steps", "4", "--loader-batch", "2", *flags))])

    return run


def photos_of(scene):
    return next(path for path in scene.iterdir() if path.is_dir() and path.name not in ("teacher", "mmvp"))


def test_scores_while_training(scene, train, weights, tmp_path, capsys):
    scores = ("--mmvp", scene / "mmvp", "--zero-shot", photos_of(scene), "--drift", "3")
    bound = ("--best", "drift", "--guard", "drift=0.5,zero_shot=drop:100")
    assert train("--eval-every", "2", *scores, *bound, "--lr", "1e-4") == 0
    output = capsys.readouterr().out
    rows = json.loads((tmp_path / "run" / "evaluations.json").read_text())
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert set(rows[0]) == {"step", "mmvp", "zero_shot", "drift"}
    assert abs(rows[0]["drift"] - 1) < 1e-6 and 0 <= rows[0]["mmvp"] <= 100
    table = [line.split() for line in output.splitlines()[-4:]]
    assert table[0][:4] == ["score", "before", "best,", "0"] and table[3][0] == "drift"
    kept = load_file(tmp_path / "run" / "best" / "clip.safetensors")
    original = load_file(weights / "before" / "clip.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in original.items())


def test_the_guard_from_the_command_line(train, tmp_path, capsys):
    assert train("--eval-every", "1", "--drift", "4", "--guard", "drift=0.9999", "--lr", "3") == 0
    output = capsys.readouterr().out
    assert "stopped after 1 steps" in output
    assert output.splitlines()[-1].startswith("the guard ended the run: drift is 0.")
    assert json.loads((tmp_path / "run" / "report.json").read_text())["stopped"].endswith("those of step 0")


def test_best_goes_by_the_validation_half(scene, train, tmp_path, capsys):
    assert train("--mmvp", scene / "mmvp", "--best", "mmvp") == 2
    told = capsys.readouterr().err
    assert "goes by MMVP-VLM, a test set" in told and "--pairs FOLDER" in told and "--best-on-test" in told
    assert train("--pairs", scene / "mmvp", "--best", "pairs") == 0
    told = capsys.readouterr().out
    assert "a test set" not in told and told.splitlines()[-1] == "retention not measured (--zero-shot FOLDER)"
    flags = ("--mmvp", scene / "mmvp", "--zero-shot", photos_of(scene), "--best", "mmvp", "--best-on-test")
    assert train(*flags, "--overwrite") == 0
    told = capsys.readouterr().out
    assert "best was chosen by MMVP-VLM, a test set" in told and "retention not measured" not in told


def test_slips(train, capsys):
    assert train("--guard", "drift=0.9") == 2
    assert (
        "--guard needs a score: give --pairs, --mmvp, --zero-shot or --drift as well"
        in capsys.readouterr().err
    )
    for text in ("drift", "drift=much", "drift=drop:much", "a=1,b"):
        with pytest.raises(ConfigError, match="cannot be read: SCORE=LOWEST"):
            bounds(text)
