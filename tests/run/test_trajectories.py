"""The losses of one run of 50 steps, however it is made, and the ones that were committed.

``python -m run.test_trajectories``, in tests/, writes trajectories.json: after a change that is meant to
change training, never to make a difference pass.
"""

import json
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from builders.small import worst
from builders.trajectories import DTYPES, NUMBERS, ROWS, STEPS, pictures

pytestmark = pytest.mark.invariant

FILE = Path(__file__).with_name("trajectories.json")
# The rows add the same numbers in another order, so they differ by rounding alone, which the weights gather
# over 50 steps: the largest and the mean relative difference of a number, and that of the final weights.
BETWEEN_ROWS = {"float64": (1e-10, 1e-10, 1e-10), "float32": (1e-5, 1e-6, 1e-4)}
# On any processor. Draws, crops, images and first weights are the same everywhere; threads and vector widths
# change rounding. With SSE in place of AVX-512 the losses moved by 1e-9 in float64 and 2e-7 in float32.
COMMITTED = {"float64": 1e-7, "float32": 1e-5}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    photos = pictures(tmp_path_factory.mktemp("trajectories") / "photos")
    return cache(lambda row, dtype: ROWS[row](photos, dtype))


def difference(ours, theirs):
    """Relative, of each number."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape == (STEPS,)
    return np.abs(ours - theirs) / np.abs(theirs)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_agree(run, dtype, row):
    most, mean, weights = BETWEEN_ROWS[dtype]
    one, other = run("8x1", dtype), run(row, dtype)
    for name in NUMBERS:
        found = difference(other.column(name), one.column(name))
        assert found.max() <= most and found.mean() <= mean, name
    assert worst(other.weights, one.weights) <= weights


@pytest.mark.parametrize("row", ["resumed at step 25", "2 workers", "4 workers"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_where_no_sum_is_split_the_bits_agree(run, dtype, row):
    one, other = run("8x1", dtype), run(row, dtype)
    assert other.history == one.history
    assert all(torch.equal(value, one.weights[name]) for name, value in other.weights.items())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_run_learns_with_the_losses_of_the_file(run, dtype):
    loss = run("8x1", dtype).column("loss")
    assert loss[-10:].mean() < 0.97 * loss[:10].mean()
    assert difference(loss, json.loads(FILE.read_text())[dtype]).max() <= COMMITTED[dtype]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        photos = pictures(Path(place) / "photos")
        losses = {dtype: ROWS["8x1"](photos, dtype).column("loss").tolist() for dtype in DTYPES}
    FILE.write_text(json.dumps(losses, indent=1) + "\n")
