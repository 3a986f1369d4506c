"""``python -m lab pretrain`` and ``python -m lab ablate``: what they refuse, and a run of few steps."""

import json

import pytest

from builders.cli import message
from lab.cli import main


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["pretrain"], "--output-dir FOLDER"),
        (["pretrain", "--output-dir", "x", "--seed", "-1"], "--seed -1: a whole number"),
        (["pretrain", "--output-dir", "x", "--clips", "0"], "--clips 0: a whole number"),
        (["ablate", "density"], "--output-dir FOLDER"),
        (["ablate", "density", "--output-dir", "x", "--seeds", "many"], "--seeds many: an integer"),
        (["ablate", "density", "--output-dir", "x", "--steps", "0"], "--steps 0: an integer"),
        (["ablate", "density", "--output-dir", "x", "--images", "1.5"], "--images 1.5: an integer"),
    ],
)
def test_what_is_refused(argv, match, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert match in message(capsys, argv, main)
    assert not list(tmp_path.iterdir())


def test_pretraining_prints_the_figures_of_its_manifest(capsys, tmp_path):
    place = tmp_path / "world"
    assert main(["pretrain", "--output-dir", str(place), "--quick", "--seed", "3"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((place / "manifest.json").read_text())["validation"]
    assert "holds checkpoints made with" in message(
        capsys, ["pretrain", "--output-dir", str(place), "--quick", "--seed", "4"], main
    )
    argv = ["ablate", "density", "--output-dir", str(tmp_path / "out"), "--world", str(tmp_path)]
    assert "holds no manifest.json" in message(capsys, argv, main)
    assert not (tmp_path / "out").exists()
