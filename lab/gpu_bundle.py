"""A folder that takes the package to a GPU machine without Rust and without a network.

`make gpu-bundle PYTHON=3.12 TORCH=2.11` builds the wheel for that Python and torch, adds the wheels of the
libraries that torch does not bring itself, the benchmarks and their tests, and `gpu.sh`. There, beside torch
and numpy, `bash gpu.sh --quick` unpacks the wheels beside itself and runs.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from lab.published_sizes import ROOT

LIMIT = 64  # MiB
FILES = ("lab", "tests", "conftest.py", "pyproject.toml")
LIBRARIES = ("open_clip_torch", "diffusers", "transformers", "psutil", "pytest", "pytest-timeout")
BUILD = ("maturin>=1.8,<2", "setuptools", "wheel>=0.43")
SPARED = ("maturin==", "setuptools==", "wheel==", "scipy==", "hf-xet==")  # of builds, evaluation, downloads


def main(python: str, torch: str, folder: Path, environments: Path) -> int:
    """Make the bundle for ``python`` (3.12) and ``torch`` (2.11) in ``folder``; returns the exit code."""
    interpreter = shutil.which(f"python{python}")
    if interpreter is None:
        print(f"no python{python} on the PATH: install it with its headers", file=sys.stderr)
        return 1
    environment = environments.resolve() / f"python{python}-torch{torch}"
    bin = environment / "bin"
    env = {**os.environ, "VIRTUAL_ENV": str(environment), "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}"}
    env |= {"CARGO_TARGET_DIR": str(environment / "target"), "PYTHONPATH": ""}

    def pip(*arguments: str) -> str:
        command = [str(bin / "python"), "-m", "pip", *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=env, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    if not bin.exists():
        subprocess.run([interpreter, "-m", "venv", str(environment)], check=True)
    wanted, brought = f"torch=={torch}" + (".*" if torch.count(".") == 1 else ""), environment / "torch.txt"
    if not brought.exists():  # what is there beside torch: an environment of an earlier time holds more
        pip("install", "--quiet", wanted, "numpy")
        brought.write_text(pip("freeze", "--all"))
    pip("install", "--quiet", wanted, *BUILD)
    there = set(brought.read_text().splitlines())
    shutil.rmtree(folder, ignore_errors=True)
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels.resolve()), ".")
    (ours,) = wheels.glob("*.whl")
    pip("install", "--quiet", str(ours.resolve()), *LIBRARIES, wanted)
    missing = [line for line in pip("freeze").splitlines() if line not in there and "==" in line]
    missing = [line for line in missing if not line.startswith(SPARED)]
    download = ("download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(wheels.resolve()))
    pip(*download, *missing)
    archive = subprocess.run(["git", "archive", "HEAD", *FILES], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    shutil.copy(ROOT / "benches" / "gpu.sh", folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20
    print(f"{folder}: {size:.0f} MiB, {len(list(wheels.iterdir()))} wheels, Python {python}, torch {torch}")
    return int(size > LIMIT)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lab.gpu_bundle", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--python", metavar="X.Y", required=True, help="the Python of the GPU machine")
    parser.add_argument("--torch", metavar="X.Y", required=True, help="the torch of the GPU machine")
    parser.add_argument("--output", metavar="FOLDER", type=Path, default=Path("dist/gpu"), help="[dist/gpu]")
    parser.add_argument(
        "--folder", metavar="FOLDER", type=Path, default=Path("build/gpu-bundle"), help="for the environment"
    )
    return parser.parse_args()


if __name__ == "__main__":
    given = _arguments()
    sys.exit(main(given.python, given.torch, given.output, given.folder))
