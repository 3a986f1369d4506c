"""Readers, training and scores give the same bits under another default device."""

import subprocess
import sys

import pytest

from builders.run_ranks import environment


@pytest.mark.timeout(300)
def test_another_default_device_changes_nothing(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "builders.default_device", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment())
    assert done.returncode == 0, done.stderr[-2000:]
