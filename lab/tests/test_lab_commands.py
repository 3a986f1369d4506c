"""``python -m lab``: mistakes on the command line, and short runs of its commands."""

import pytest

from builders.cli import message
from lab import photographs
from lab.cli import main


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["pretrain"], "required: --output-dir"),
        (["pretrain", "--output-dir", "x", "--seed", "-1"], "--seed: '-1': an integer of at least 0"),
        (["ablate", "density"], "required: --output-dir"),
        (["ablate", "density", "--output-dir", "x", "--seeds", "many"], "--seeds: 'many': an integer"),
        (["ablate", "colour", "--output-dir", "x"], "invalid choice: 'colour'"),
        (["study", "--output-dir", "x", "--images", "1.5"], "--images: '1.5': an integer"),
    ],
)
def test_what_is_refused(argv, match, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert match in message(capsys, argv, main)
    assert not list(tmp_path.iterdir())


def test_a_world_without_checkpoints_is_named(capsys, tmp_path):
    argv = ["ablate", "density", "--output-dir", str(tmp_path / "out"), "--world", str(tmp_path)]
    assert "holds no manifest.json" in message(capsys, argv, main)
    assert not (tmp_path / "out").exists()


def test_the_photographs_run(tmp_path, capsys):
    result = photographs.run(tmp_path / "run", steps=1, progress=False, crops=2)
    assert result.report["steps"] == 1
    assert "the same embeddings" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").is_file()
