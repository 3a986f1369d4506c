"""The notebooks run with this version, and those in the repository hold the outputs of a whole run."""

import importlib.util
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def outputs(cell):
    """(kind, content) of everything that a cell shows."""
    for output in cell.get("outputs", []):
        assert output.output_type != "error", output.evalue
        yield from [(output.name, output.text)] if output.output_type == "stream" else output.data.items()


def kinds(notebook):
    """The kinds of what each cell shows."""
    return [{kind for kind, _ in outputs(cell)} for cell in notebook.cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_with_small_settings(path, monkeypatch, tmp_path):
    monkeypatch.setenv("DIVA_RS_QUICK", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    notebook = module.executed(path)
    shown = set().union(*kinds(notebook))
    assert {"image/png", "stdout"} <= shown and "stderr" not in shown
    # The repository's copy shows the same: it was made of these cells.
    assert kinds(notebook) == kinds(nbformat.read(path, as_version=4))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_the_repository_holds_is_a_whole_run(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert path.stat().st_size < 2 << 20
    text = "".join(
        content for cell in notebook.cells for kind, content in outputs(cell) if kind != "image/png"
    )
    assert str(Path.home()) + "/" not in text and "/tmp/" not in text
    # Of the settings of a whole run, not of the tests'.
    assert {"quickstart": "450 steps", "your_own_training_loop": "200 steps", "ablations": "seed 2: "}[
        path.stem
    ] in text


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["ablations", "quickstart", "your_own_training_loop"]
