"""The checksums of a folder's files: written with them, looked at before any of them is read."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diva_rs._base.files import open_regular, read_text
from diva_rs.errors import WeightsError, shown

NAME = "manifest.json"


def manifest(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each file.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "a").write_text("diva")
    >>> manifest(folder, ["a"])["a"]["bytes"]
    4
    """
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}
        for name in sorted(names)
    }


def verify(folder: Path, names: Iterable[str]) -> None:
    """Compare the files ``names`` with the folder's manifest; any other name in it is never opened.

    Raises:
        WeightsError: the manifest or a file is missing or damaged; names it.

    >>> verify(Path("nowhere"), ["a"])
    Traceback (most recent call last):
    diva_rs.errors.WeightsError: nowhere/manifest.json cannot be read: ...
    """
    path = folder / NAME
    try:
        listed = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as err:
        raise WeightsError(f"{path} cannot be read: {err}") from err
    for name in names:
        entry = listed.get(name) if isinstance(listed, dict) else None
        if not isinstance(entry, dict):
            raise WeightsError(f"{path} is no manifest of a checkpoint: it does not list {name}")
        file = folder / name
        try:
            size = file.stat().st_size
            if size != entry.get("bytes"):
                raise WeightsError(
                    f"{file} is damaged: it has {size} bytes, but {shown(entry.get('bytes'))} were written"
                )
            if _sha256(file) != entry.get("sha256"):
                raise WeightsError(f"{file} is damaged: its checksum is not that of what was written")
        except OSError as err:
            raise WeightsError(f"{file} cannot be read: {err}") from err


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
