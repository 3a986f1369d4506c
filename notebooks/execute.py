"""Run the notebooks and keep their outputs: ``python notebooks/execute.py [NAME ...]``."""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with fresh outputs, run in its own folder by this Python; the first error ends it."""
    # tqdm's word on ipywidgets, which no notebook here needs: their progress bars are off.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
    )
    return client.execute()


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.ipynb")):
        if not sys.argv[1:] or path.stem in sys.argv[1:]:
            print(path.name, flush=True)
            nbformat.write(executed(path), path)
