"""Importing diva_rs: quick, without the optional libraries, against one torch version only."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import diva_rs
from diva_rs import DependencyError

ROOT = Path(__file__).parents[2]
OPTIONAL = [
    "open_clip",
    "transformers",
    "diffusers",
    "timm",
    "PIL",
    "torchvision",
    "webdataset",
    "matplotlib",
]


def fresh(code):
    """Run code in a process of its own; what it prints last, as JSON."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_import_costs_little_over_torch_and_loads_no_optional_library():
    code = (
        "import json, sys, time, torch; began = time.perf_counter(); import diva_rs; "
        "print(json.dumps([time.perf_counter() - began, sorted(m.split('.')[0] for m in sys.modules)]))"
    )
    best = float("inf")
    for _ in range(6):  # the least of several: other work on the machine only ever adds
        seconds, modules = fresh(code)
        assert not set(OPTIONAL) & set(modules)
        best = min(best, seconds)
        if best <= 0.3:
            break
    assert best <= 0.3


def test_another_torch_version_is_refused_by_both_names():
    code = """
import json, sys, torch
seen = []
for version in ("2.12.1", "2.14.0.dev20260101+cpu", "2.13.0+cu130"):
    torch.__version__ = version
    for name in [name for name in sys.modules if name.startswith("diva_rs")]:
        del sys.modules[name]
    try:
        import diva_rs
        seen.append(None)
    except ImportError as err:
        seen.append(str(err))
print(json.dumps(seen))
"""
    old, new, local = fresh(code)
    for found, version in ((old, "2.12.1"), (new, "2.14.0.dev20260101+cpu")):
        assert found == (
            f"diva_rs was built against torch 2.13.0, but torch {version} is installed: "
            "pip install torch==2.13.0"
        )
    assert local is None  # a build for another device of the same version


def test_the_version_that_is_asked_for_is_the_one_that_is_installed_with():
    text = (ROOT / "pyproject.toml").read_text()
    assert f'"torch=={diva_rs._TORCH}"' in text
    assert f'version = "{diva_rs.__version__}"' in (ROOT / "Cargo.toml").read_text()


@pytest.mark.parametrize("name", diva_rs.__all__)
def test_every_public_name_is_there(name):
    found = getattr(diva_rs, name)
    assert callable(found) and found.__doc__
    assert name in dir(diva_rs)


def test_every_submodule_is_there():
    for name in diva_rs._SUBMODULES:
        assert getattr(diva_rs, name) is importlib.import_module(f"diva_rs.{name}")
    namespace = {}
    exec("from diva_rs import *", namespace)
    assert namespace.keys() - {"__builtins__"} == set(diva_rs.__all__)
    with pytest.raises(AttributeError, match="module 'diva_rs' has no attribute 'Trianer'"):
        diva_rs.Trianer  # noqa: B018


def small_model(name):
    from diva_rs.microworld.demo import photographs

    return getattr(photographs, name)()


def plotted():
    recipe = diva_rs.Recipe()
    return diva_rs.PostTrainResult([], {}, None, recipe, None).plot()


@pytest.mark.parametrize(
    ("module", "call", "extra"),
    [
        ("open_clip", lambda: small_model("small_clip"), "open-clip"),
        ("diffusers", lambda: small_model("small_teacher"), "diffusers"),
        ("transformers", lambda: small_model("small_teacher"), "transformers"),
        ("skimage.data", lambda: small_model("Photographs"), "demo"),
        ("matplotlib.pyplot", plotted, "plot"),
        ("diffusers", lambda: diva_rs.Teacher("folder"), "diffusers"),
    ],
    ids=["open_clip", "diffusers", "transformers", "skimage", "matplotlib", "a diffusers folder"],
)
def test_a_missing_library_names_the_pip_command(monkeypatch, tmp_path, module, call, extra):
    (tmp_path / "folder" / "unet").mkdir(parents=True)
    (tmp_path / "folder" / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    expected = re.escape(f"{module} is needed here and not installed: pip install 'diva-rs[{extra}]'")
    with pytest.raises(DependencyError, match=expected) as caught:
        call()
    assert isinstance(caught.value, ImportError)


def test_every_extra_that_a_message_names_exists():
    declared = set(re.findall(r"^([a-z-]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    sources = [file.read_text() for file in (ROOT / "python" / "diva_rs").rglob("*.py")]
    named = {extra for text in sources for extra in re.findall(r'extra="([^"]+)"', text)}
    assert len(named) >= 5 and named <= declared
