"""Hostile arguments all over the public API: a result or an exception of diva_rs, and never a panic.

`python -m fuzz public --cases 5000`, in tests/, runs many more of the same cases.
"""

import pytest

from fuzz.engine import run
from fuzz.public import Public, public_names

pytestmark = pytest.mark.hostile

CASES = 150
NO_CALL = {
    "WandB",  # needs the wandb library, which the tests do not install
}
# Without arguments, or made by other calls of the table.
OF_OTHERS = {"Ranks", "Captioned", "Tower", "alone", "launched", "rank_and_world", "session"}


def test_hostile_arguments(tmp_path):
    """In a child process: an abort or a hang is a failure with the number of its case."""
    report = run("public", CASES, keep=tmp_path)
    assert not report.failures, f"{report}\nsaved in {tmp_path}"
    assert report.cases == CASES
    refused = sum(count for outcome, count in report.outcomes.items() if outcome.endswith("Error"))
    assert CASES // 5 < refused < CASES, report


def test_every_public_name_has_a_good_call(tmp_path, monkeypatch):
    """A name that is new to the public API comes into the table too, or is named above with its reason."""
    monkeypatch.chdir(tmp_path)
    public = Public(tmp_path)
    public.make_calls()
    called = {name.split(".")[0] for name in public.calls}
    names = set(public_names())
    assert not names - called - NO_CALL - OF_OTHERS, "without a good call in tests/fuzz/calls_of_*.py"
    assert not (NO_CALL | OF_OTHERS) - names, "no longer public"
