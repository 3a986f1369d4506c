"""The native module runs beside the minor version of torch that it was built against."""

import importlib.util
import re
from pathlib import Path

import torch

SUPPORTED = "torch>=2.9,<2.16"


def check(built: str) -> None:
    """Raise an ImportError if the installed torch is of another minor version than `built` (`2.15.0`)."""
    if built.split(".")[:2] != torch.__version__.split(".")[:2]:
        raise ImportError(
            f"diva_rs was built against torch {built}, but torch {torch.__version__} is installed. Build it "
            "again: pip install --force-reinstall --no-deps diva-rs (in a checkout: . in place of diva-rs). "
            f"It builds against {SUPPORTED}."
        )


def mismatch() -> ImportError | None:
    """The error of `check` for a native module that cannot be loaded: its file names the version."""
    spec = importlib.util.find_spec("diva_rs._native")
    if spec is None or spec.origin is None:
        return None
    built = re.search(rb"built against torch (\d+\.\d+\.\d+)", Path(spec.origin).read_bytes())
    try:
        check(built[1].decode() if built else torch.__version__)
    except ImportError as err:
        return err
    return None
