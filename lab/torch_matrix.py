"""Build, install and try the package beside every supported torch, and record what happened.

`python -m lab torch-matrix [VERSION ...] [--python 3.10] [--beside 'transformers==4.57.*' ...]` makes one
virtual environment per version below `--folder`, builds the wheel there, runs a few tests of the suite
against the installed package, and updates `lab/results/torch-matrix.md`, and the figures as JSON beside it.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.published_sizes import ROOT, stamp

VERSIONS = ("2.9.1", "2.10.0", "2.11.0", "2.12.1", "2.13.0", "2.14.1", "2.15.0")
RESULTS = ROOT / "lab" / "results" / "torch-matrix"
PYTEST = ("-m", "pytest", "--no-header", "-x")
# What is run in each environment, by its Python.
CHECKS: dict[str, tuple[str, ...]] = {
    "import": (*PYTEST, "tests/package/test_import.py", "-k", "torch or public"),
    "parity of the step": (
        *PYTEST,
        "tests/step/test_step_reference.py",
        "tests/native/test_native_equals_torch.py",
    ),
    "resume": (*PYTEST, "tests/run/test_resume.py"),
    "export": (*PYTEST, "tests/clip/test_export.py"),
    "demo": ("-m", "diva_rs.cli", "demo", "--steps", "5", "--no-progress"),
}
LIBRARIES = ("torchvision", "open_clip_torch", "transformers", "diffusers")
NOTED = (
    "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
)


def main(versions: list[str], folder: Path, interpreter: str = "", beside: Sequence[str] = ()) -> int:
    """Try each version (by default all supported ones); returns how many failed.

    ``interpreter`` is a version of Python (default: the running one), ``beside`` requirements of other
    libraries (default: the newest that fit).
    """
    interpreter = interpreter or f"{sys.version_info.major}.{sys.version_info.minor}"
    if shutil.which(f"python{interpreter}") is None:
        print(f"no python{interpreter} on the PATH: install it with its headers", file=sys.stderr)
        return 1
    file, failed = RESULTS.with_suffix(".json"), 0
    RESULTS.parent.mkdir(exist_ok=True)
    for version in versions or VERSIONS:
        key = " ".join([version, interpreter, *beside])
        print(f"torch, Python: {key}", flush=True)
        environment = folder.resolve() / re.sub(r"[^\w.]+", "-", key)
        if not environment.exists():
            subprocess.run([f"python{interpreter}", "-m", "venv", str(environment)], check=True)
        entry = {**stamp(), **_try(version, environment, beside)}
        known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        known[key] = entry
        file.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
        RESULTS.with_suffix(".md").write_text(page(known))
        failed += not all(entry["checks"].values())
    return failed


def _try(version: str, environment: Path, beside: Sequence[str]) -> dict[str, Any]:
    """Build, install, check; the environment stays for the next time."""
    python = environment / "bin" / "python"
    search = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "VIRTUAL_ENV": str(environment), "PATH": search}
    env["CARGO_TARGET_DIR"] = str(environment / "target")  # torch-sys is built once for each version
    env.pop("PYTHONPATH", None)

    def call(*arguments: str) -> bool:
        return subprocess.run([str(python), *arguments], cwd=ROOT, env=env).returncode == 0

    pip = ("-m", "pip", "install", "--quiet")
    call(*pip, f"torch=={version}", "maturin>=1.8,<2", "numpy", "setuptools", "wheel>=0.43")
    wheels, start = environment / "wheels", time.monotonic()
    shutil.rmtree(wheels, ignore_errors=True)  # a wheel of an earlier time is not this build's
    call(
        "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), "."
    )
    built: dict[str, Any] = {"build_seconds": round(time.monotonic() - start)}
    wheel = next(wheels.glob("*.whl"), None)
    if wheel is None:
        return {**built, "checks": {"build": False}}
    built["wheel_mib"] = round(wheel.stat().st_size / 2**20, 1)
    installed = call(*pip, f"diva-rs[dev] @ {wheel.as_uri()}", f"torch=={version}", *beside)
    installed &= call(
        *pip, "--force-reinstall", "--no-deps", str(wheel)
    )  # over an earlier one of this version
    noted = subprocess.run(
        [str(python), "-c", NOTED, "torch", *LIBRARIES], env=env, capture_output=True, text=True
    )
    built["libraries"] = json.loads(noted.stdout or "{}")
    checks = {name: call(*arguments) for name, arguments in CHECKS.items()}
    return {**built, "checks": {"build": True, "install": installed, **checks}}


def page(known: dict[str, Any]) -> str:
    """The table, newest torch first; a key is torch's version, Python's, and what else was required."""
    names = ["build", "install", *CHECKS]
    head = ["torch", "Python", *names, "wheel, s", "wheel, MiB", *LIBRARIES, "commit", "date", "machine"]
    rows = [head, ["---"] * len(head)]
    for key, entry in sorted(
        known.items(), key=lambda pair: [-int(n) for n in pair[0].split()[0].split(".")]
    ):
        checks = ["passed" if entry["checks"].get(name) else "**failed**" for name in names]
        sizes = [str(entry.get(name, "")) for name in ("build_seconds", "wheel_mib")]
        libraries = [entry.get("libraries", {}).get(name, "") for name in LIBRARIES]
        rows.append(
            [*key.split()[:2], *checks, *sizes, *libraries, entry["commit"], entry["date"], entry["machine"]]
        )
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    calls = "\n".join(f"* {name}: `{shlex.join(['python', *call])}`" for name, call in CHECKS.items())
    return f"""# Beside every supported torch

`make torch-matrix` builds the wheel in an environment of each version, installs it there with the
newest libraries that fit (`--beside` requires others, `--python` is another interpreter), and runs

{calls}

"wheel, s" is the time of `pip wheel`: longer where torch-sys was built in it, next to none where nothing was.

{table}
"""
