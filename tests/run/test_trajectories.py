"""The losses of one run of 50 steps, however it is made, and the ones that were committed.

``python -m run.test_trajectories``, in tests/, writes the losses of trajectories.json anew: after a
change that is meant to change training, never to make a difference pass.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from builders.small import worst
from builders.trajectories import DTYPES, NUMBERS, ROWS, STEPS, Trajectory, pictures

pytestmark = pytest.mark.invariant

FILE = Path(__file__).with_name("trajectories.json")


class Runs:
    """Each row's run, made when it is first asked for."""

    def __init__(self, place: Path) -> None:
        self.photos = pictures(place / "photos")
        self.done: dict[tuple[str, str], Trajectory] = {}

    def of(self, row: str, dtype: str) -> Trajectory:
        if (row, dtype) not in self.done:
            self.done[row, dtype] = ROWS[row](self.photos, dtype)
        return self.done[row, dtype]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("trajectories"))


@pytest.fixture(scope="module")
def file():
    return json.loads(FILE.read_text())


def difference(ours, theirs):
    """Relative, of each number."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape == (STEPS,)
    return np.abs(ours - theirs) / np.abs(theirs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_run_learns(runs, dtype):
    loss = runs.of("8x1", dtype).column("loss")
    assert loss[-10:].mean() < 0.97 * loss[:10].mean()


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_agree(runs, file, dtype, row):
    limit = file["between rows"][dtype]
    one, other = runs.of("8x1", dtype), runs.of(row, dtype)
    for name in NUMBERS:
        found = difference(other.column(name), one.column(name))
        print(f"{dtype} {row}: {name} max {found.max():.1e}, mean {found.mean():.1e}")
        assert found.max() <= limit["max"], name
        assert found.mean() <= limit["mean"], name
    assert worst(other.weights, one.weights) <= limit["weights"]


@pytest.mark.parametrize("row", ["resumed at step 25", "2 workers", "4 workers"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_where_no_sum_is_split_the_bits_agree(runs, dtype, row):
    one, other = runs.of("8x1", dtype), runs.of(row, dtype)
    assert other.history == one.history
    assert all(torch.equal(value, one.weights[name]) for name, value in other.weights.items())


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_losses_are_those_of_the_file(runs, file, dtype, row):
    found = difference(runs.of(row, dtype).column("loss"), file["losses"][row][dtype])
    print(f"{dtype} {row}: max {found.max():.1e}, mean {found.mean():.1e}")
    assert found.max() <= file["committed"][dtype]["max"]


def test_the_file_holds_every_row(file):
    assert list(file["losses"]) == list(ROWS)


def write() -> None:
    """The file with the losses of this machine; tolerances and their meaning stay."""
    held = json.loads(FILE.read_text())
    with tempfile.TemporaryDirectory() as place:
        runs = Runs(Path(place))
        held["losses"] = {row: {d: runs.of(row, d).column("loss").tolist() for d in DTYPES} for row in ROWS}
    rows = held.pop("losses")
    text = json.dumps(held, indent=1)
    blocks = []
    for row, found in rows.items():
        lines = ",\n".join(f"   {json.dumps(dtype)}: {json.dumps(losses)}" for dtype, losses in found.items())
        blocks.append(f"  {json.dumps(row)}: {{\n{lines}\n  }}")
    FILE.write_text(text[:-2] + ',\n "losses": {\n' + ",\n".join(blocks) + "\n }\n}\n")


if __name__ == "__main__":
    write()
