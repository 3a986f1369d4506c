"""Saved states that do not fit: named by their entry, and nothing is changed by what fits."""

import copy

import pytest
import torch

from builders.small import images, small_clip, small_teacher
from diva_rs import ConfigError, FeedbackLoss, Recipe, Trainer, WeightsError

pytestmark = pytest.mark.hostile

ADAMW = Recipe(optimizer="adamw", lr=1e-2, projector="mlp")


@pytest.fixture(scope="module")
def teacher():
    return small_teacher()


@pytest.fixture(scope="module")
def saved(teacher):
    """The state of a trainer after two steps."""
    trainer = Trainer(small_clip(), teacher, ADAMW)
    for seed in (0, 1):
        trainer.step(images(2, seed=seed))
    return trainer.state_dict()


def dropped(part, key):
    def spoil(state):
        del state[part][key]

    return spoil


def put(part, key, value):
    def spoil(state):
        state[part][key] = value

    return spoil


def cut(part, key):
    def spoil(state):
        state[part][key] = state[part][key][:-1]

    return spoil


PROJ = "visual.proj"
MOMENT = "visual.proj.exp_avg"
FAULTS = {
    "missing parameter": (
        dropped("parameters", PROJ),
        "parameter 'visual.proj' is missing from the saved state",
    ),
    "extra parameter": (
        put("parameters", "visual.extra", torch.ones(1)),
        "parameter 'visual.extra' is unexpected in the saved state",
    ),
    "misshapen parameter": (
        cut("parameters", PROJ),
        r"visual.proj is torch.float32 \(31, 20\) in the saved state, here torch.float32 \(32, 20\)",
    ),
    "another dtype": (
        put("parameters", PROJ, torch.ones(32, 20, dtype=torch.float64)),
        r"visual.proj is torch.float64 \(32, 20\) in the saved state, here torch.float32",
    ),
    "no tensor": (put("parameters", PROJ, [1.0]), "entry 'visual.proj' is a list in the saved state"),
    "sparse": (
        put("parameters", PROJ, torch.ones(32, 20).to_sparse()),
        "entry 'visual.proj' is <.*in layout torch.sparse",
    ),
    "nested": (
        put("parameters", PROJ, torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(1, 3)])),
        "entry 'visual.proj' is <.*it holds no plain values",
    ),
    "meta": (put("parameters", PROJ, torch.ones(32, 20, device="meta")), "entry 'visual.proj' is .* on meta"),
    "no tensor as moment": (put("optimizer", MOMENT, None), "exp_avg' is a NoneType in the saved state"),
    "meta moment": (put("optimizer", MOMENT, torch.ones(32, 20, device="meta")), "exp_avg' is .* on meta"),
    "no name of a moment": (put("optimizer", 3, torch.ones(1)), "entry 3 is a Tensor"),
    "no name": (put("parameters", 3, torch.ones(1)), "parameter 3 is unexpected"),
    "missing moment": (dropped("optimizer", MOMENT), "visual.proj.exp_avg.*(missing|not given)"),
    "extra moment": (put("optimizer", "clip.x.exp_avg", torch.ones(1)), "clip.x.exp_avg"),
    "misshapen moment": (cut("optimizer", MOMENT), r"visual.proj.exp_avg.*\[31, 20\].*\[32, 20\]"),
    "missing counter": (dropped("counters", "epoch"), "counter epoch is None in the saved state"),
    "negative counter": (put("counters", "steps_done", -1), "counter steps_done is -1 in the saved state"),
    "odd counter": (put("counters", "samples_seen", "4"), "counter samples_seen is '4' in the saved state"),
    "no parameters": (
        lambda state: state.pop("parameters"),
        "not a state of Trainer: 'parameters' is missing",
    ),
    "no optimizer": (lambda state: state.pop("optimizer"), "not a state of Trainer: 'optimizer' is missing"),
    "a list": (lambda state: state.update(counters=[1]), "'counters' is missing or no mapping"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_state_that_does_not_fit_changes_nothing(teacher, saved, name):
    spoil, match = FAULTS[name]
    state = copy.deepcopy(saved)
    spoil(state)
    trainer = Trainer(small_clip(seed=3), teacher, ADAMW)
    trainer.step(images(2, seed=5))
    before = trainer.state_dict()
    with pytest.raises(WeightsError, match=match):
        trainer.load_state_dict(state)
    after = trainer.state_dict()
    for part in ("parameters", "optimizer"):
        assert before[part].keys() == after[part].keys()
        assert all(torch.equal(before[part][key], after[part][key]) for key in before[part])
    assert after["counters"] == before["counters"] == {"steps_done": 1, "samples_seen": 2, "epoch": 0}


@pytest.mark.parametrize("state", [None, [], "state.json", {}])
def test_what_is_no_state_at_all(teacher, state):
    trainer = Trainer(small_clip(), teacher)
    with pytest.raises(WeightsError, match="not a state of Trainer: 'parameters' is missing"):
        trainer.load_state_dict(state)


def test_the_state_of_another_recipe_is_refused(teacher, saved):
    sgd = Trainer(small_clip(), teacher, Recipe(projector="mlp"))
    with pytest.raises(WeightsError, match=r"visual\S*\.(momentum_buffer|exp_avg)"):
        sgd.load_state_dict(saved)
    linear = Trainer(small_clip(), teacher, Recipe(optimizer="adamw"))
    with pytest.raises(WeightsError, match=r"parameter 'projector\.0\.bias' is unexpected"):
        linear.load_state_dict(saved)


def test_loading_discards_a_gradient_that_was_not_applied(teacher, saved):
    trainer = Trainer(small_clip(seed=3), teacher, ADAMW)
    trainer.accumulate(images(2))
    trainer.load_state_dict(saved)
    assert trainer.pending == 0 and trainer.steps_done == 2
    assert all(parameter.grad is None for parameter in trainer.parameters().values())


def test_a_state_is_a_copy(teacher, saved):
    before = copy.deepcopy(saved)
    trainer = Trainer(small_clip(), teacher, ADAMW)
    trainer.load_state_dict(saved)
    state = trainer.state_dict()
    kept = copy.deepcopy(state)
    trainer.step(images(2))
    for part in ("parameters", "optimizer"):
        for key in before[part]:
            assert torch.equal(saved[part][key], before[part][key]), key
            assert torch.equal(state[part][key], kept[part][key]), key


@pytest.mark.parametrize("epoch", [-1, 1.5, "1", 2**63, True, None])
def test_an_epoch_is_a_whole_number(teacher, epoch):
    for owner in (Trainer(small_clip(), teacher), FeedbackLoss(small_clip(), teacher)):
        with pytest.raises(ConfigError, match=r"epoch is .*: a whole number from 0"):
            owner.set_epoch(epoch)
        assert owner.epoch == 0
