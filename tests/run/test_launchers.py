"""Scripts under torchrun and accelerate launch: the weights of one process, also after a restart."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from builders.run_ranks import TESTS, Runs, environment
from builders.small import worst
from diva_rs._base.checkpoint import load_weights
from diva_rs.distributed import session

BIN = Path(sys.executable).parent
SCRIPT = str(TESTS / "builders" / "launched_script.py")
TORCHRUN = ("torchrun", "--standalone", "--nproc-per-node=2")
ACCELERATE = ("accelerate", "launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0")


def launched(launcher, *arguments):
    program, *options = launcher
    command = [str(BIN / program), *options, SCRIPT, *map(str, arguments)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the script goes on") == 2
    return done


@pytest.mark.timeout(600)
def test_a_run_that_torchrun_restarts_resumes_to_the_same_bits(tmp_path):
    Runs(tmp_path, "with_files-2")  # the same run, undisturbed
    done = launched([*TORCHRUN, "--max-restarts=1"], tmp_path / "restarted", "killed")
    # Where both have ended before torchrun looks, it names rank 0, which lost the connection.
    assert "failed (exitcode: " in done.stderr or "Signal 9 (SIGKILL)" in done.stderr
    first, second = json.loads((tmp_path / "restarted" / "run.json").read_text())["starts"]
    assert first["step"] == 0 and second["step"] in (1, 2)
    straight, restarted = (
        load_weights(tmp_path / run / "clip.safetensors") for run in ("files-2", "restarted")
    )
    assert straight.keys() == restarted.keys()
    assert all(value.equal(restarted[name]) for name, value in straight.items())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=lambda launcher: launcher[0])
def test_a_script_under_a_launcher(launcher, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    subprocess.run([sys.executable, SCRIPT, str(alone)], env=environment(), check=True, timeout=280)
    launched(launcher, together)
    assert '"ranks": 2' in (together / "report.json").read_text()
    weights = [load_weights(folder / "clip.safetensors") for folder in (together, alone)]
    assert worst(*weights) <= 1e-10


def test_an_exception_is_recorded_for_torchrun(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(ValueError, match="no image"), session():
        raise ValueError("no image behind this door")
    message = json.loads((tmp_path / "error.json").read_text())["message"]
    assert message["message"] == "ValueError: no image behind this door"
    assert "test_launchers.py" in message["extraInfo"]["py_callstack"]
