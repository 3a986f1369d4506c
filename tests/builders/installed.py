"""A package of one module with one entry point, as pip would have installed it."""

import importlib
from pathlib import Path

import pytest


def install(
    folder: Path, patch: pytest.MonkeyPatch, module: str, source: str, group: str, name: str = ""
) -> None:
    """Write ``module`` into ``folder``; ``name`` is of the object in it that the entry point names."""
    (folder / f"{module}.py").write_text(source)
    metadata = folder / f"{module}-1.0.dist-info"
    metadata.mkdir(exist_ok=True)
    title = module.replace("_", "-")
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {title}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\nadded = {module}{name and ':' + name}\n")
    patch.syspath_prepend(folder)
    importlib.invalidate_caches()
