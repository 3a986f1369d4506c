"""Importing diva_rs: quick, without the optional libraries, against one minor version of torch."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import diva_rs
import diva_rs._native as _native
import diva_rs.microworld.models
from diva_rs import DependencyError, microworld
from diva_rs._base.torch_version import SUPPORTED
from lab.torch_matrix import VERSIONS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]


def fresh(code):
    """Run code in a process of its own; what it prints last, as JSON."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_import_loads_hardly_anything_beyond_torch():
    code = (
        "import json, sys, torch; before = set(sys.modules); import diva_rs; "
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    added = fresh(code)
    assert {name.split(".")[0] for name in added} <= {"diva_rs", *sys.stdlib_module_names}
    assert len([name for name in added if name.startswith("diva_rs")]) <= 5


def test_another_minor_version_of_torch_is_refused_by_both_names():
    major, minor, patch = _native.__torch__.split(".")
    other, later = f"{major}.{int(minor) + 1}.0.dev20260101+cpu", f"{major}.{minor}.{int(patch) + 1}+cu130"
    code = f"""
import json, sys, torch
seen = []
for version in ("{other}", "{later}"):
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
    refused, taken = fresh(code)
    assert f"built against torch {_native.__torch__}, but torch {other} is installed" in refused
    assert "pip install --force-reinstall --no-deps diva-rs" in refused
    assert taken is None


def test_a_module_that_cannot_be_loaded_is_read_for_its_torch(tmp_path):
    code = f"""
import json, pathlib, shutil, sys, torch
package = shutil.copytree({str(Path(diva_rs.__file__).parent)!r}, {str(tmp_path / "diva_rs")!r})
[native] = pathlib.Path(package).glob("_native*.so")
native.write_bytes(b"no library, built against torch 2.1.0.")
sys.path.insert(0, {str(tmp_path)!r})
try:
    import diva_rs
except ImportError as err:
    first = str(err)
native.write_bytes(b"no library")
try:
    import diva_rs
except ImportError as err:
    print(json.dumps([first, str(err)]))
"""
    named, unnamed = fresh(code)
    assert "built against torch 2.1.0, but torch" in named
    assert "invalid ELF header" in unnamed or "file too short" in unnamed


def test_the_supported_versions_are_the_same_everywhere():
    found = re.fullmatch(r"torch>=2\.(\d+),<2\.(\d+)", SUPPORTED)
    oldest, newest = int(found[1]), int(found[2]) - 1
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert SUPPORTED in project["dependencies"]
    assert f'SUPPORTED = "{SUPPORTED}"' in (ROOT / "build_backend.py").read_text()
    header = (ROOT / ".cargo" / "torch_versions.h").read_text()
    assert f"MINOR < {oldest} || TORCH_VERSION_MINOR > {newest}" in header
    assert f"TORCH  ?= 2.{newest}." in (ROOT / "Makefile").read_text()
    assert {int(version.split(".")[1]) for version in VERSIONS} == set(range(oldest, newest + 1))
    assert f'version = "{diva_rs.__version__}"' in (ROOT / "Cargo.toml").read_text()


@pytest.mark.parametrize("name", diva_rs.__all__)
def test_every_public_name_is_there(name):
    found = getattr(diva_rs, name)
    assert callable(found) and found.__doc__
    assert name in dir(diva_rs)


def test_every_public_module_is_there_under_its_public_path():
    for name, place in diva_rs._MODULES.items():
        module = importlib.import_module(f"diva_rs.{name}")
        assert module is getattr(diva_rs, name) is importlib.import_module(f"diva_rs.{place}")
    namespace = {}
    exec("from diva_rs import *", namespace)
    assert namespace.keys() - {"__builtins__"} == set(diva_rs.__all__)
    with pytest.raises(AttributeError, match="module 'diva_rs' has no attribute 'Trianer'"):
        diva_rs.Trianer  # noqa: B018


def plotted():
    return diva_rs.PostTrainResult([], {}, None, diva_rs.Recipe(), None).plot()


@pytest.mark.parametrize(
    ("module", "call", "extra"),
    [
        ("open_clip", lambda: microworld.new_clip(0), "open-clip"),
        ("diffusers", lambda: microworld.models.new_unet(0), "diffusers"),
        ("transformers", lambda: microworld.models.new_text_encoder(0), "diffusers"),
        ("matplotlib.pyplot", plotted, "plot"),
        ("diffusers", lambda: diva_rs.Teacher("folder"), "diffusers"),
    ],
    ids=["open_clip", "diffusers", "transformers", "matplotlib", "a diffusers folder"],
)
def test_a_missing_library_names_the_pip_command(monkeypatch, tmp_path, module, call, extra):
    (tmp_path / "folder" / "unet").mkdir(parents=True)
    (tmp_path / "folder" / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    expected = re.escape(f"{module} is needed here and not installed: pip install 'diva-rs[{extra}]'")
    with pytest.raises(ImportError, match=expected) as caught:
        call()
    assert type(caught.value) is DependencyError


def test_every_extra_that_a_message_names_exists():
    declared = set(re.findall(r"^([a-z-]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    sources = [file.read_text() for file in (ROOT / "python" / "diva_rs").rglob("*.py")]
    named = {extra for text in sources for extra in re.findall(r'require\([^)]*\bextra="([^"]+)"', text)}
    assert len(named) >= 5 and named <= declared
