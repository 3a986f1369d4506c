"""``diva-rs train`` under torchrun: two ranks print, score and train as one process does."""

import json
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch

from builders.benchmarks import photos_folder
from builders.cli import SCORED, SCORED_CONFIG
from builders.diffusion import tiny_pipeline
from builders.run_ranks import environment
from builders.small import worst
from diva_rs._base.checkpoint import load_weights

ALONE = [sys.executable, "-m"]
TORCHRUN = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc_per_node=2", "-m"]


def clip_folder(folder):
    """A folder of open_clip with random weights."""
    folder.mkdir()
    torch.save(open_clip.create_model(SCORED).state_dict(), folder / "open_clip_pytorch_model.bin")
    config = {"model_cfg": SCORED_CONFIG, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_command_line_under_torchrun(tmp_path):
    clip = clip_folder(tmp_path / "clip")
    tiny_pipeline().save_pretrained(tmp_path / "teacher")
    photos = photos_folder(tmp_path)
    command = [
        *("diva_rs.cli", "train", "--clip", clip, "--teacher", tmp_path / "teacher", "--data", photos),
        *("--workers", "0", "--device", "cpu", "--precision", "fp64", "--no-progress", "--steps", "4"),
        *("--batch", "4", "--loader-batch", "2", "--log-every", "1", "--lr", "1e-3"),
        *("--eval-every", "2", "--drift", "3", "--best", "drift", "--guard", "drift=0.5"),
    ]
    outputs = []
    for launcher, name in ((ALONE, "alone"), (TORCHRUN, "together")):
        words = map(str, [*launcher, *command, "--output-dir", tmp_path / name])
        done = subprocess.run([*words], env=environment(), capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout.replace(str(tmp_path / name), "FOLDER"))
    assert outputs[0].count("differing from the defaults") == outputs[0].count("done: 4 steps") == 1
    assert outputs[0].count("score") == 1
    assert outputs[1] == outputs[0]
    assert json.loads((tmp_path / "together" / "report.json").read_text())["ranks"] == 2
    weights = [load_weights(tmp_path / name / "clip.safetensors") for name in ("together", "alone")]
    assert worst(*weights) <= 1e-10
