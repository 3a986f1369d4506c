"""SIGTERM and its like, which clusters send before SIGKILL, leave a checkpoint of the steps done."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from builders.run_ranks import Runs, environment
from diva_rs.distributed import session
from diva_rs.distributed.signals import noticed
from diva_rs.step.interrupts import held_interrupts

PROGRAM = """
import signal, sys, time
import diva_rs
from builders.small import images, small_clip, small_teacher
def tell(step, metrics):
    print("step", step, flush=True)
    time.sleep(0.02)
{before}
result = diva_rs.post_train(
    small_clip(), small_teacher(), [images(2)] * 200, output_dir=sys.argv[1], log_every=1, steps=40,
    schedule="constant", callbacks=[tell], progress=False)
print("returned", result.interrupted, result.report["steps"], flush=True)
"""


def run(folder, *numbers, before=""):
    """Start the program, send the signals after its fifth step, and give its exit code and last words."""
    program = [sys.executable, "-c", PROGRAM.format(before=before), str(folder)]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=environment())
    line = ""
    for line in process.stdout:
        if line == "step 5\n":
            for number in numbers:
                process.send_signal(number)
    return process.wait(60), line.strip()


def kept(folder):
    return sorted(int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1], ids=lambda each: each.name
)
def test_a_signal_that_ends_the_process_leaves_its_steps(tmp_path, number):
    before = f"signal.signal({int(number)}, signal.SIG_DFL)"  # the test's own process may ignore it
    # Twice, as a launcher passes on what the process got already.
    assert run(tmp_path, number, number, before=before)[0] == -number
    [step] = kept(tmp_path)
    assert 5 <= step < 40
    assert json.loads((tmp_path / "report.json").read_text())["interrupted"]
    assert run(tmp_path) == (0, "returned False 40")
    assert json.loads((tmp_path / "run.json").read_text())["starts"][1]["step"] == step


@pytest.mark.timeout(300)
def test_a_handler_of_the_callers_is_called_at_the_end(tmp_path):
    before = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))"
    assert run(tmp_path, signal.SIGTERM, before=before)[0] == 7
    assert kept(tmp_path)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("number", "before"),
    [
        (signal.SIGUSR1, "signal.signal(signal.SIGUSR1, lambda *_: None)"),
        (signal.SIGUSR1, "import faulthandler; faulthandler.register(signal.SIGUSR1)"),
        (signal.SIGHUP, "signal.signal(signal.SIGHUP, signal.SIG_IGN)"),  # nohup
    ],
)
def test_signals_that_the_caller_handles_or_ignores_are_left_alone(tmp_path, number, before):
    assert run(tmp_path, number, before=before) == (0, "returned False 40")


@pytest.mark.timeout(900)
def test_all_ranks_stop_after_the_same_step(tmp_path):
    runs = Runs(tmp_path, "terminated-2")
    assert runs.ends["terminated-2"]["codes"] == [-signal.SIGTERM] * 2
    assert kept(tmp_path / "terminated") == [3]


def test_the_handlers_are_those_of_before_again():
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    with session():
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    assert [signal.getsignal(number) for number in numbers] == before
    thread = threading.Thread(target=lambda: noticed().__enter__())
    thread.start()
    thread.join()
    assert [signal.getsignal(number) for number in numbers] == before


def test_signals_wait_for_an_update_and_none_is_lost(ctrl_c):
    got = []
    before = signal.signal(signal.SIGTERM, lambda *_: got.append("SIGTERM"))
    try:
        with pytest.raises(KeyboardInterrupt), held_interrupts() as hold:
            hold()
            ctrl_c()
            os.kill(os.getpid(), signal.SIGTERM)
            assert got == []
        assert got == ["SIGTERM"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_child_of_a_fork_ends_as_usual():
    with noticed():
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
