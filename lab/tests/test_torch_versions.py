"""The commands that build for other versions of torch and Python: what they write, and what they refuse."""

import subprocess

from lab import gpu_bundle, torch_matrix
from lab.published_sizes import ROOT

ENTRY = {
    "commit": "abc1234",
    "date": "2026-01-02",
    "machine": "2 cores",
    "build_seconds": 150,
    "wheel_mib": 8.1,
}


def test_the_table_has_the_newest_torch_first_and_names_what_failed():
    passed = dict.fromkeys(("build", "install", *torch_matrix.CHECKS), True)
    known = {
        "2.9.1 3.11": {**ENTRY, "checks": {"build": False}},
        "2.15.0 3.10 diffusers==0.42.*": {**ENTRY, "checks": passed, "libraries": {"diffusers": "0.42.1"}},
    }
    rows = [line.split(" | ") for line in torch_matrix.page(known).splitlines() if line.startswith("| 2.")]
    assert [row[:2] for row in rows] == [["| 2.15.0", "3.10"], ["| 2.9.1", "3.11"]]
    assert "**failed**" not in rows[0] and "0.42.1" in rows[0]
    assert rows[1].count("**failed**") == len(passed)


def test_every_check_of_the_matrix_is_there():
    for arguments in torch_matrix.CHECKS.values():
        assert all((ROOT / name).exists() for name in arguments if name.startswith("tests/"))


def test_an_interpreter_that_is_not_there_is_named(tmp_path, capsys):
    assert gpu_bundle.main("3.99", "2.15", tmp_path / "bundle", tmp_path) == 1
    assert torch_matrix.main(["2.15.0"], tmp_path / "matrix", "3.99") == 1
    assert capsys.readouterr().err.count("no python3.99 on the PATH") == 2
    assert not list(tmp_path.iterdir())


def test_the_gpu_script_is_valid_and_names_its_arguments():
    script = ROOT / "benches" / "gpu.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    wrong = subprocess.run(["bash", str(script), "--nothing"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "unknown argument --nothing" in wrong.stderr
