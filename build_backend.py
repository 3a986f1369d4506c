"""How pip builds diva-rs: maturin, against the right torch, which the wheel's metadata then names.

The torch is that of the variable DIVA_RS_TORCH (such as 2.14.1), else the one installed where the package
goes, else the newest supported one.
"""

import importlib.metadata
import os
import re
import sys
import sysconfig
import tempfile
from pathlib import Path

import maturin
from maturin import build_sdist, get_requires_for_build_sdist  # noqa: F401
from wheel.wheelfile import WheelFile

WRAPPER = Path(__file__).with_name(".cargo") / "cxx"
SUPPORTED = "torch>=2.9,<2.16"


def _wanted():
    """What the build environment has to install."""
    if version := os.environ.get("DIVA_RS_TORCH"):
        return f"torch=={version}"
    paths = sysconfig.get_paths()
    installed = importlib.metadata.distributions(name="torch", path=[paths["purelib"], paths["platlib"]])
    for torch in installed:  # of the environment that pip runs in, whatever it hides from the build
        return f"torch=={torch.version.split('+')[0]}"
    return SUPPORTED


def _check(requirement):
    version = requirement.partition("==")[2]
    if version and not re.match(r"2\.(9|1[0-5])\.", version):
        sys.exit(
            f"diva-rs builds against {SUPPORTED}; this is torch {version}. Install a supported one first."
        )


def get_requires_for_build_wheel(config_settings=None):
    _check(wanted := _wanted())
    return [*maturin.get_requires_for_build_wheel(config_settings), wanted]


def get_requires_for_build_editable(config_settings=None):
    return get_requires_for_build_wheel(config_settings)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    _prepare()
    return maturin.build_editable(wheel_directory, config_settings, metadata_directory)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """As maturin builds it; its version and its dependency name the minor version of torch."""
    torch = importlib.metadata.version("torch")
    _check(f"torch=={torch}")
    minor = ".".join(torch.split(".")[:2])
    _prepare()
    with tempfile.TemporaryDirectory() as folder, WheelFile(_built(folder, config_settings)) as built:
        name, version = built.parsed_filename["name"], built.parsed_filename["ver"]
        named = f"{version}+torch{minor}"
        file = Path(wheel_directory, Path(built.filename).name.replace(version, named, 1))
        with WheelFile(file, "w") as wheel:
            for member in built.infolist():
                content = built.read(member)
                member.filename = member.filename.replace(
                    f"{name}-{version}.dist-info", f"{name}-{named}.dist-info"
                )
                if member.filename.endswith(".dist-info/METADATA"):
                    content = content.replace(
                        f"\nVersion: {version}".encode(), f"\nVersion: {named}".encode(), 1
                    )
                    content = re.sub(
                        rb"(?m)^Requires-Dist: torch>.*$",
                        f"Requires-Dist: torch=={minor}.*".encode(),
                        content,
                    )
                if not member.filename.endswith(".dist-info/RECORD"):  # WheelFile writes one
                    wheel.writestr(member, content)
    return file.name


def _prepare():
    """Cargo builds torch-sys again for another torch, and can run maturin and the compiler's wrapper."""
    os.environ["LIBTORCH_USE_PYTORCH"] = importlib.metadata.version("torch")
    # Without build isolation, maturin may lie in an environment that is not activated.
    os.environ["PATH"] = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)))
    if not os.access(WRAPPER, os.X_OK):  # source archives keep no executable bit
        WRAPPER.chmod(0o755)


def _built(folder, config_settings):
    return Path(folder, maturin.build_wheel(folder, config_settings))
