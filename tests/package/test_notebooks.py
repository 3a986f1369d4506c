"""The notebooks run with this version, and those in the repository hold the outputs of a whole run."""

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest

import diva_rs

FOLDER = Path(__file__).parents[2] / "notebooks"
# Each with what its output says after a whole run: the settings of the tests are smaller.
WHOLE = {
    "quickstart": "450 steps",
    "your_own_training_loop": "200 steps",
    "recipes_compared": "(80 steps",
    "bring_your_own_world": "300 steps",
    "caption_feedback": "600 steps",
}


def outputs(cell):
    """(kind, content) of everything that a cell shows."""
    for output in cell.get("outputs", []):
        assert output.output_type != "error", output.evalue
        yield from [(output.name, output.text)] if output.output_type == "stream" else output.data.items()


def kinds(notebook):
    """The kinds of what each cell shows."""
    return [{kind for kind, _ in outputs(cell)} for cell in notebook.cells]


@pytest.mark.parametrize("name", WHOLE)
def test_it_runs_with_small_settings(name, monkeypatch, tmp_path):
    path = FOLDER / f"{name}.ipynb"
    monkeypatch.setenv("DIVA_RS_QUICK", "1")
    for folder in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(folder, str(tmp_path / folder))
    monkeypatch.delenv("MPLBACKEND")
    import matplotlib.font_manager  # noqa: F401  # builds the font cache, of which a notebook would tell

    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    notebook = module.executed(path)
    shown = set().union(*kinds(notebook))
    assert {"image/png", "stdout"} <= shown and "stderr" not in shown
    # The repository's copy shows the same: it was made of these cells.
    assert kinds(notebook) == kinds(nbformat.read(path, as_version=4))


@pytest.mark.parametrize("name", WHOLE)
def test_what_the_repository_holds_is_a_whole_run(name):
    path = FOLDER / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert len(counts) > 5 and counts == list(range(1, len(counts) + 1))
    assert path.stat().st_size < 2 << 20
    text = "".join(
        content for cell in notebook.cells for kind, content in outputs(cell) if kind != "image/png"
    )
    assert not re.search(r"/(home|root|tmp|Users)/", text)  # a path of the machine that ran it
    assert WHOLE[name] in text
    first = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert f"'diva-rs[all]=={diva_rs.__version__}+torch{{minor}}'" in first  # in Colab


def test_every_notebook_is_tested():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == WHOLE.keys()
