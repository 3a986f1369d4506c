"""How pip builds the package: against which torch, and what the wheel says about it."""

import importlib.metadata
import os
import sysconfig
import zipfile

import pytest
from wheel.wheelfile import WheelFile

import build_backend

METADATA = """Metadata-Version: 2.4
Name: diva-rs
Version: 0.1.0
Requires-Dist: numpy>=1.26
Requires-Dist: torch>=2.9,<2.16
Requires-Dist: torchvision>=0.24 ; extra == 'data'

Text.
"""


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """Makes an environment that has a torch of the given version, or none."""
    monkeypatch.delenv("DIVA_RS_TORCH", raising=False)

    def make(version=None):
        monkeypatch.setattr(
            sysconfig, "get_paths", lambda: {"purelib": str(tmp_path), "platlib": str(tmp_path)}
        )
        if version:
            info = tmp_path / f"torch-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: torch\nVersion: {version}\n")

    return make


def required():
    return build_backend.get_requires_for_build_wheel()[-1]


def test_the_torch_of_the_environment_is_built_against(environment, monkeypatch):
    environment("2.14.0+cu130")
    assert required() == "torch==2.14.0"
    monkeypatch.setenv("DIVA_RS_TORCH", "2.12.1")
    assert required() == "torch==2.12.1"


def test_an_empty_environment_gets_the_newest_supported_torch(environment):
    environment()
    assert required() == build_backend.SUPPORTED


@pytest.mark.parametrize("version", ["2.8.0", "2.16.0", "1.13.1", "3.0"])
def test_another_torch_is_refused_before_anything_is_built(environment, version):
    environment(version)
    with pytest.raises(SystemExit, match=rf"builds against torch>=.*; this is torch {version}"):
        required()


@pytest.mark.parametrize("version", ["two", "2", "2.x", ""])
def test_a_variable_that_is_no_version_is_refused(environment, monkeypatch, version):
    environment()
    monkeypatch.setenv("DIVA_RS_TORCH", version)
    if version:
        with pytest.raises(SystemExit, match=rf"this is torch {version}"):
            required()
    else:
        assert required() == build_backend.SUPPORTED


def test_the_wheel_names_the_minor_version_of_torch(tmp_path, monkeypatch):
    def build(folder, settings):
        name = "diva_rs-0.1.0-cp311-cp311-linux_x86_64.whl"
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\nTag: cp311-cp311-linux_x86_64\n"
        with WheelFile(f"{folder}/{name}", "w") as wheel:
            wheel.writestr("diva_rs/__init__.py", "")
            for member, text in (("METADATA", METADATA), ("WHEEL", tags)):
                wheel.writestr(f"diva_rs-0.1.0.dist-info/{member}", text)
        return name

    wrapper = tmp_path / "cxx"
    wrapper.touch(0o644)
    monkeypatch.setattr(build_backend, "WRAPPER", wrapper)  # as a source archive leaves it
    monkeypatch.setenv("LIBTORCH_USE_PYTORCH", "1")
    monkeypatch.setenv("PATH", "/usr/bin")  # of an environment that is not activated
    monkeypatch.setattr(build_backend.maturin, "build_wheel", build)
    monkeypatch.setattr(importlib.metadata, "version", {"torch": "2.14.1+cpu"}.__getitem__)
    name = build_backend.build_wheel(str(tmp_path))
    assert name == "diva_rs-0.1.0+torch2.14-cp311-cp311-linux_x86_64.whl"
    assert wrapper.stat().st_mode & 0o111 and os.environ["LIBTORCH_USE_PYTORCH"] == "2.14.1+cpu"
    assert os.environ["PATH"] == f"{sysconfig.get_path('scripts')}{os.pathsep}/usr/bin"
    with zipfile.ZipFile(tmp_path / name) as wheel:
        assert wheel.testzip() is None
        text = wheel.read("diva_rs-0.1.0+torch2.14.dist-info/METADATA").decode()
    assert "Version: 0.1.0+torch2.14\n" in text and "Requires-Dist: torch==2.14.*\n" in text
    assert "torch>=" not in text and "torchvision>=0.24" in text
