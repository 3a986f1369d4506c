"""Draws replay to the bit: under any batch order, split and thread count, and from one release to the next.

``python tests/step/test_draws.py`` writes the golden table anew: every replay of users' runs breaks.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import diva_rs
from diva_rs.step.draws import DrawPlan, Draws, augment_seed, draw, sample_keys

pytestmark = pytest.mark.invariant

GOLDEN = Path(__file__).with_name("golden_draws.json")
TIMESTEPS = ("uniform", "stratified", "logit-normal")

U64 = st.integers(0, 2**64 - 1)
IDS = st.lists(U64, min_size=1, max_size=6, unique=True)
TOKENS = st.sampled_from(
    [{}, {"choose": 5}, {"choose": 12}, {"choose": 20, "replacement": True}, {"density": 0.3}]
)


@st.composite
def plans(make: st.DrawFn) -> DrawPlan:
    low = make(st.integers(0, 100))
    return DrawPlan(
        seed=make(U64),
        draws=make(st.integers(1, 4)),
        latent_shape=tuple(make(st.lists(st.integers(1, 5), min_size=1, max_size=3))),
        patches=12,
        timesteps=make(st.sampled_from(TIMESTEPS)),
        timestep_range=(low, low + make(st.integers(1, 1000))),
        **make(TOKENS),
    )


def equal(one: Draws, other: Draws) -> bool:
    pairs = ((getattr(one, name), getattr(other, name)) for name in ("timesteps", "noise", "tokens"))
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


@settings(max_examples=60, deadline=None)
@given(plans(), IDS, U64, st.randoms(use_true_random=False))
def test_batch_order_does_not_matter(plan, ids, epoch, random):
    order = list(range(len(ids)))
    random.shuffle(order)
    straight = plan.draw(ids, epoch)
    shuffled = plan.draw([ids[i] for i in order], epoch)
    assert equal(shuffled, Draws(straight.timesteps[order], straight.noise[order], straight.tokens[order]))


@settings(max_examples=60, deadline=None)
@given(plans(), IDS, U64, st.data())
def test_splits_do_not_matter(plan, ids, epoch, data):
    whole = plan.draw(ids, epoch)
    cut = data.draw(st.integers(1, len(ids)))
    for rows in (slice(0, cut), slice(cut, None)):
        if ids[rows]:
            part = plan.draw(ids[rows], epoch)
            # Strata are cut for the batch that is given; noise and tokens know nothing of it.
            timesteps = part.timesteps if plan.timesteps == "stratified" else whole.timesteps[rows]
            assert equal(part, Draws(timesteps, whole.noise[rows], whole.tokens[rows]))


@pytest.mark.parametrize("timesteps", TIMESTEPS)
def test_thread_count_does_not_matter(timesteps):
    plan = DrawPlan(
        5, 3, (4, 37, 61), patches=49, choose=7, timesteps=timesteps
    )  # several chunks, one not full
    before = torch.get_num_threads()
    seen = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            seen.append(plan.draw(range(5), epoch=2))
    finally:
        torch.set_num_threads(before)
    assert equal(seen[0], seen[1]) and equal(seen[0], seen[2])


def test_every_part_of_the_key_changes_every_number():
    def noise(seed=1, sample=2, epoch=3):
        return draw(seed=seed, ids=[sample], draws=2, latent_shape=(4, 16, 16), epoch=epoch).noise[0]

    base = noise()
    # 32-bit words agree by chance, a few in 2**32: none here.
    others = [
        noise(seed=2),
        noise(sample=1),
        noise(epoch=0),
        noise(seed=2**63),
        noise(sample=2**63),
        base[::-1],
    ]
    for other in others:
        assert not (base == other).any()
        # Independent streams: the correlation of n pairs has a standard error of 1/sqrt(n).
        assert abs(np.corrcoef(base.ravel(), other.ravel())[0, 1]) < 4 / base.size**0.5


def test_no_two_streams_start_alike():
    ids, epochs = range(300), range(3)
    words = np.concatenate([draw(0, ids, 3, (2,), epoch=epoch).noise for epoch in epochs]).view(np.uint64)
    first = set(words.ravel().tolist())  # one value of 64 bits per stream
    assert len(first) == 300 * 3 * 3
    seeds = {
        augment_seed(seed, sample, epoch) for seed in range(5) for sample in range(50) for epoch in epochs
    }
    assert len(seeds) == 5 * 50 * 3
    assert all(0 <= seed < 2**63 for seed in seeds)


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
