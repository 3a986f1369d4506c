"""An unchanged script under torchrun and accelerate launch ends with the weights of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from builders.run_ranks import TESTS, environment
from builders.small import worst
from diva_rs._base.checkpoint import load_weights

BIN = Path(sys.executable).parent
SCRIPT = str(TESTS / "builders" / "launched_script.py")
LAUNCHERS = {
    "torchrun": ["torchrun", "--standalone", "--nproc_per_node=2"],
    "accelerate": ["accelerate", "launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0"],
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_an_unchanged_script(launcher, tmp_path):
    program, *options = LAUNCHERS[launcher]
    alone, together = tmp_path / "alone", tmp_path / "together"
    commands = [[sys.executable, SCRIPT, str(alone)], [str(BIN / program), *options, SCRIPT, str(together)]]
    for command in commands:
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
    assert done.stdout.count("the script goes on") == 2
    assert '"ranks": 2' in (together / "report.json").read_text()
    weights = [load_weights(os.path.join(folder, "clip.safetensors")) for folder in (together, alone)]
    assert worst(*weights) <= 1e-10
