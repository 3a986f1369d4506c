"""Draws replay to the bit from one release to the next; `tests/draws.rs` shows what else they promise.

``python tests/step/test_draws.py`` writes the golden table anew: every replay of users' runs breaks.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import diva_rs
from diva_rs.step.draws import DrawPlan, Draws, augment_seed, draw, sample_keys

pytestmark = pytest.mark.invariant

GOLDEN = Path(__file__).with_name("golden_draws.json")
TIMESTEPS = ("uniform", "stratified", "logit-normal")


def test_strata_depend_on_the_set_of_ids_alone():
    plan = DrawPlan(0, 2, (1,), timesteps="stratified")
    names = ["a.png", "b.png", "c.png"]
    turned = plan.draw(names[::-1]).timesteps[::-1]
    assert np.array_equal(plan.draw(names).timesteps, turned)
    assert not np.array_equal(plan.draw([*names[:2], "d.png"]).timesteps[:2], turned[:2])


def table() -> dict[str, object]:
    """Draws of seed 0, as whole numbers: float32 by its bits."""
    found: dict[str, object] = {}
    for timesteps in TIMESTEPS:
        plan = DrawPlan(0, 2, (2, 3), patches=9, choose=4, timesteps=timesteps)
        drawn = plan.draw([7, "cat.png", 2**64 - 1], epoch=1)
        found[timesteps] = drawn.timesteps.tolist()
    found["noise bits"] = drawn.noise.view(np.uint32).tolist()
    found["tokens"] = drawn.tokens.tolist()
    rules = {"replacement": {"choose": 6, "replacement": True}, "density": {"density": 0.4}}
    for name, rule in rules.items():
        found[f"tokens, {name}"] = DrawPlan(0, 2, (1,), patches=9, **rule).draw([7]).tokens.tolist()
    large = draw(seed=0, ids=range(4), draws=2, latent_shape=(4, 64, 64)).noise
    found["sha256 of noise (4, 2, 4, 64, 64)"] = hashlib.sha256(large.tobytes()).hexdigest()
    found["augment seeds"] = [augment_seed(0, sample, 1) for sample in (7, "cat.png")]
    found["keys"] = sample_keys(["cat.png", "é", 3]).tolist()
    return found


def test_golden_table():
    golden = json.loads(GOLDEN.read_text())
    found = table()
    assert found.keys() == golden.keys()
    for name, expected in golden.items():
        assert found[name] == expected, f"{name} changed: replays of earlier runs would break"


def test_public_names():
    assert diva_rs.draw is draw and diva_rs.DrawPlan is DrawPlan and diva_rs.Draws is Draws


if __name__ == "__main__":
    lines = (f" {json.dumps(name)}: {json.dumps(value)}" for name, value in table().items())
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
