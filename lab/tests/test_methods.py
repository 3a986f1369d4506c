"""The comparison of methods: published settings by one rule, costs, controls, intervals, and figures."""

import json

import numpy as np
import pytest
import torch

import lab.study
from diva_rs import Recipe
from diva_rs.captions import Judgements
from lab.cli import main
from lab.cli.ablate import NAMES
from lab.study import STUDY, Summary, TrainingImages, ablate
from lab.study.arms import TOKENS
from lab.study.captions import certain, truth
from lab.study.cost import cost, judging, predicted
from lab.study.curves import CURVES
from lab.study.gains import main as draw_gains
from lab.study.methods import CHOICES, CONTROL_OF, METHODS, RATE, by_rate
from lab.study.outcomes import ITEMS, Outcomes, Scores, changed
from lab.study.runs import read_rows, run_arm
from lab.world import StudyWorld

PRESETS = {
    "DIVA": "diva-openai-vit-l-14-224",
    "GenHancer": "genhancer-openai-vit-l-14-224",
    "un2CLIP": "un2clip-openai-vit-l-14-224",
    "DCR": "dcr-openai-vit-l-14-224",
}
RULE = {"name", "stages", "steps", "batch", "image_size", "pixels", "lr"}


@pytest.fixture(scope="module")
def world():
    return StudyWorld()


@pytest.fixture(scope="module")
def images(world):
    return TrainingImages(world.vae, world.data.feedback(16))


@pytest.fixture(scope="module")
def right(images):
    words = images.dataset.vocabulary
    return Judgements({key: certain(values, words) for key, values in truth(images).items()}, words)


@pytest.mark.parametrize("name", PRESETS)
def test_a_method_has_its_published_settings_but_for_the_rule(name):
    published, ours = Recipe.named(PRESETS[name]), Recipe(**METHODS[name].recipe())
    assert set(published.differences(ours)) <= RULE
    *before, tower = ours.plan()
    assert (tower.steps, ours.batch) == (900, 16) and all(stage.steps == 1800 for stage in before)
    assert {group.lr for stage in before for group in stage.groups} <= {1e-3}
    last = published.plan()[-1]
    assert [group.name for group in tower.groups] == [group.name for group in last.groups]
    for group, was in zip(tower.groups, last.groups, strict=True):
        assert group.lr == pytest.approx(RATE * was.lr)
    assert tower.weights == last.weights


def test_an_added_anchor_acts_on_the_tower_alone():
    for name in PRESETS:
        *before, tower = Recipe(**METHODS[f"{name}, kernel anchor"].recipe()).plan()
        assert tower.weights["anchor"] > 0 and not any(stage.weights["anchor"] for stage in before)


def test_fewer_steps_shorten_all_stages_alike():
    stages = METHODS["un2CLIP"].recipe(steps=30)["stages"]
    assert [stage.steps for stage in stages] == [60, 30]
    assert METHODS["class token alone"].recipe(steps=30)["projector_warmup"] == 15


@pytest.mark.parametrize("name", [name for name, arm in METHODS.items() if arm not in STUDY.values()])
def test_every_method_trains_the_tower(name, world, images, right):
    clip, unet = world.clip(), {key: value.clone() for key, value in world.unet.state_dict().items()}
    before = clip.visual.transformer.resblocks[0].mlp.c_fc.weight.detach().clone()
    row = run_arm(METHODS[name], clip, world, images, seed=0, steps=3, judged=right)
    assert np.isfinite(list(row.values())).all() and row["tower_gflops"] > 0
    assert not torch.equal(before, clip.visual.transformer.resblocks[0].mlp.c_fc.weight)
    # A generator that trains is a copy.
    assert all(torch.equal(unet[key], value) for key, value in world.unet.state_dict().items())


def test_the_generator_takes_the_embedding_in_place_of_words(world):
    teacher, unet = world.teacher("unclip"), world.teacher()
    assert teacher.slots.names == ("pooled",) and teacher.condition_width == 64
    kept, fresh = unet.denoiser.state_dict(), teacher.denoiser.state_dict()
    assert all(torch.equal(value, fresh[key]) for key, value in kept.items()) and len(fresh) > len(kept)
    noisy, timesteps = torch.randn(2, 16, 6, 6), torch.tensor([3, 500])
    one, other = (teacher.denoise(noisy, timesteps, torch.full((2, 1, 64), value)) for value in (0.0, 1.0))
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    "curve, name",
    [
        ("projector", "mlp, 60 steps alone"),
        ("low-rank", "rank 64, lr 0.003"),
        ("timesteps", "250 to 499"),
        ("after", "averaged 0.95"),
        ("after", "interpolated 0.5"),
    ],
)
def test_points_of_the_curves_train_the_tower(curve, name, world, images):
    clip = world.clip()
    before = clip.visual.transformer.resblocks[0].mlp.c_fc.weight.detach().clone()
    run_arm(CURVES[curve][name], clip, world, images, seed=0, steps=10)
    assert not torch.equal(before, clip.visual.transformer.resblocks[0].mlp.c_fc.weight)


def test_every_point_of_every_curve_is_a_recipe():
    for arm in (arm for arms in (*CURVES.values(), CHOICES) for arm in arms.values()):
        assert Recipe(**arm.recipe()).plan()


def test_costs_follow_steps_predictions_and_what_trains(world, images, right):
    def of(name, steps):
        arm = METHODS[name]
        teacher = world.teacher(arm.teacher) if Recipe(**arm.recipe()).predicts else None
        return cost(arm, world.clip(), teacher, images, arm.recipe(steps))

    each, generator = (predicted(world.teacher(kind), images) for kind in ("unet", "unclip"))
    assert 0.001 < each < generator < 1.1 * each
    # DIVA has two draws. A frozen teacher's backward pass counts as one more forward pass.
    assert of("DIVA", 10)["teacher_gflops"] == pytest.approx(10 * 16 * 2 * 2 * each, rel=1e-3)
    dcr = of("DCR", 10)
    assert dcr["teacher_gflops"] == pytest.approx((20 * 16 + 10 * 16 * 17) * 2 * each, rel=0.05)
    assert dcr["steps"] == 30
    unclip = of("un2CLIP", 10)["teacher_gflops"]
    assert unclip == pytest.approx((20 * 16 * 3 + 10 * 16 * 2) * generator, rel=1e-3)
    for name in ("captions", "anchor alone", "supervised on detailed captions"):
        assert of(name, 10)["teacher_gflops"] == 0 < of(name, 10)["tower_gflops"]
    words = sum(one.losses.size for sets in right.evidence.values() for one in sets)
    assert judging(right, world.teacher(), images) == pytest.approx(words * each)


def test_changed_items_add_up_to_the_change():
    def scores(*right):
        outcomes = Outcomes(("a", "b"), np.array(right, float))
        return Scores(outcomes.scores(), {"mini_mmvp": outcomes, "probe_class": outcomes})

    nan = np.nan
    before, after = scores([1, nan], [0, nan], [nan, 1]), scores([1, nan], [1, nan], [nan, 0])
    assert changed(before, after) == {"mini_mmvp": {"1": 75.0, "2": -150.0, ITEMS: 3}}
    assert changed({}, {}) == {}


def _row(arm, seed, after, **more):
    scores = ("mini_mmvp", "zero_shot", "probe_pooled", "probe_class", "probe_patches")
    return {
        "arm": arm,
        "seed": seed,
        "before": dict.fromkeys(scores, 30.0),
        "after": dict.fromkeys(scores, after),
        **more,
    }


def test_the_intervals_over_seeds_and_items_are_wider_than_over_seeds():
    items = {"mini_mmvp": {"0": 100.0, "3": 100.0, ITEMS: 100}}
    rows = [_row("a", seed, 32.0, changed=items) for seed in range(4)]
    summary = Summary([*rows, *(_row("b", seed, 31.0 + seed) for seed in range(2))], ["a", "b"])
    of = summary.crossed("a", "mini_mmvp")
    expected = 1.96 * np.std([100, 100] + [0] * 98, ddof=1) / 10
    assert (of.difference, of.high - of.difference) == pytest.approx((2.0, expected))
    assert summary.crossed("b", "mini_mmvp") == summary.of("b", "mini_mmvp")  # of an earlier version
    less = summary.minus("b", "a", "mini_mmvp")
    assert (less.difference, less.seeds) == pytest.approx((-0.5, 2))
    table = summary.controlled({"b": "a", "c": "a"}).splitlines()
    assert len(table) == 3 and table[2].startswith("| b | a | -0.5 [")


def test_every_control_is_an_arm():
    arms = METHODS | TOKENS
    assert CONTROL_OF.keys() | set(CONTROL_OF.values()) <= arms.keys()
    assert all(arms[control].mismatched or arms[control].captions for control in CONTROL_OF.values())
    assert set(by_rate(1.0)) == set(PRESETS)


def test_the_table_resumes_and_its_gains_are_drawn(world, tmp_path, monkeypatch, capsys):
    few = {name: METHODS[name] for name in ("class token alone", CONTROL_OF["class token alone"])}
    monkeypatch.setitem(lab.study._EVERY, "methods", few)
    settings = (2, "validation", world.folder, 2, 16, 64)
    ablate("methods", tmp_path / "out", *settings)
    page = (tmp_path / "out" / "summary.md").read_text()
    assert "Intervals over seeds and items:" in page and "More than its control:" in page
    assert "| class token alone | 2 | " in page.partition("Costs of a run:")[2]
    rows = read_rows(tmp_path / "out" / "runs.jsonl")
    assert len(rows) == 4 and rows[0]["changed"]["mini_mmvp"][ITEMS] == 27 and rows[0]["cpu_seconds"] > 0
    capsys.readouterr()
    ablate("methods", tmp_path / "out", *settings)
    assert capsys.readouterr().out == ""
    draw_gains([str(tmp_path / "gains"), str(tmp_path / "out")])
    light, dark = ((tmp_path / f"gains-{theme}.svg").read_text() for theme in ("light", "dark"))
    assert "#1f2328" in light and "#e6e6e6" in dark and "#0072b2" in light


def test_the_commands_name_the_arms(monkeypatch, tmp_path):
    assert set(NAMES) == set(lab.study._EVERY) - {"study", "tokens", "methods"}
    asked = []
    summary = Summary([_row("a", 0, 31.0)], ["a"])
    monkeypatch.setattr(
        lab.study, "ablate", lambda name, *_, seeds, **__: asked.append((name, seeds)) or summary
    )
    for argv in (["study"], ["study", "--arms", "methods", "--seeds", "3-5"], ["ablate", "length"]):
        assert main([*argv, "--output-dir", str(tmp_path)]) == 0
    assert asked == [("study", range(5)), ("methods", range(3, 6)), ("length", range(5))]


def test_rows_hold_costs_as_json(world, images):
    row = run_arm(METHODS["text alone"], world.clip(), world, images, seed=0, steps=1)
    assert json.loads(json.dumps(row)) == row
