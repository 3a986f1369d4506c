"""Stages: what a recipe says about the parts of a run, and the plan that the step carries out."""

import json
import pickle

import pytest

import diva_rs
from diva_rs.errors import ConfigError
from diva_rs.recipes.recipe import Group, Recipe, Stage

TWO = (
    Stage(train=("projector", "denoiser"), steps=10, optimizer="adamw", lr=1e-3, denoiser_lr=1e-5),
    Stage(train=("tower",), lr=1e-6, grad_clip=0.0),
)


def test_a_recipe_without_stages_is_one_stage_of_its_fields():
    recipe = Recipe(steps=20, optimizer="adamw", lr=1e-3, projector_lr=1e-2, warmup=3, weight_decay=0.1)
    [stage] = recipe.plan()
    assert (stage.first, stage.steps, stage.continues) == (0, 20, False)
    assert (stage.schedule_first, stage.schedule_steps) == (0, 20)
    assert (stage.optimizer, stage.betas, stage.eps) == ("adamw", (0.9, 0.999), 1e-8)
    assert (stage.momentum, stage.grad_clip) == (0.9, 1.0)
    assert {group.name: group.lr for group in stage.groups} == {"projector": 1e-2, "tower": 1e-3}
    for group in stage.groups:
        assert (group.weight_decay, group.schedule, group.warmup) == (0.1, "cosine", 3)


def test_projector_warmup_is_a_first_stage_that_the_second_one_continues():
    first, second = Recipe(steps=20, projector_warmup=5).plan()
    assert [group.name for group in first.groups] == ["projector"]
    assert [group.name for group in second.groups] == ["projector", "tower"]
    assert [(stage.first, stage.steps) for stage in (first, second)] == [(0, 5), (5, 15)]
    assert [(stage.schedule_first, stage.schedule_steps) for stage in (first, second)] == [(0, 20)] * 2
    assert (first.continues, second.continues) == (False, True)
    written = (Stage(train=("projector",), steps=5), Stage(train=("projector", "tower"), continues=True))
    assert Recipe(steps=20, stages=written).plan() == (first, second)
    [alone] = Recipe(steps=20, projector_warmup=30).plan()
    assert ([group.name for group in alone.groups], alone.steps) == (["projector"], 20)


def test_the_rate_is_constant_where_the_end_is_not_known():
    first, second = Recipe(projector_warmup=5).plan()
    assert (second.steps, second.schedule_steps, first.schedule_steps) == (None, None, None)
    assert {group.schedule for group in (*first.groups, *second.groups)} == {"constant"}
    assert Recipe(projector_warmup=5).plan(20) == Recipe(projector_warmup=5, steps=20).plan()


def test_a_stage_takes_what_it_does_not_say_from_the_recipe():
    recipe = Recipe(stages=TWO, steps=25, lr=0.5, weight_decay=0.2, momentum=0.5)
    first, second = recipe.plan()
    assert {group.name: group.lr for group in first.groups} == {"projector": 1e-3, "denoiser": 1e-5}
    assert (first.optimizer, second.optimizer) == ("adamw", "sgd")
    assert (first.schedule_first, first.schedule_steps) == (0, 10)
    assert (second.first, second.steps, second.schedule_first, second.schedule_steps) == (10, 15, 10, 15)
    assert (first.grad_clip, second.grad_clip) == (1.0, None)
    assert (second.momentum, second.groups[0].weight_decay, second.groups[0].lr) == (0.5, 0.2, 1e-6)


def test_a_group_has_settings_of_its_own():
    stage = Stage(
        train=(
            Group(name="projector", lr=1e-2, weight_decay=0.0, schedule="constant", warmup=4),
            {"name": "tower:*attn*", "lr": 1e-7},
            "tower",
        ),
        lr=1e-4,
    )
    assert stage.names == ("projector", "tower:*attn*", "tower")
    projector, attention, tower = Recipe(stages=(stage,), steps=9, weight_decay=0.3).plan()[0].groups
    assert (projector.lr, projector.weight_decay, projector.schedule, projector.warmup) == (
        *(1e-2, 0.0),
        *("constant", 4),
    )
    assert (attention.lr, attention.weight_decay, attention.schedule) == (1e-7, 0.3, "cosine")
    assert tower.lr == 1e-4


def test_the_steps_of_the_stages_are_those_of_the_run():
    ends = (TWO[0], Stage(train=("tower",), steps=5))
    recipe = Recipe(stages=ends)
    assert recipe.steps == 15
    assert recipe.replace(stages=TWO).steps is None
    assert recipe.replace(stages=()).steps is None
    assert recipe.replace(lr=0.5).steps == 15
    with pytest.raises(ConfigError, match="steps=16, but the stages have 15 steps: leave steps out"):
        Recipe(stages=ends, steps=16)
    with pytest.raises(ConfigError, match="steps=10, but the stages have 10 steps"):
        Recipe(stages=TWO, steps=10)


BAD = [
    ({"train": ()}, "one or more values, each a string"),
    ({"train": ("Tower",)}, "train='Tower': a group's name is needed, such as"),
    ({"train": ("tower:",)}, "a group's name is needed"),
    ({"train": ("tower", "tower")}, "names the group 'tower' twice"),
    ({"train": ("tower", 3)}, "train="),
    ({"train": ({"name": "tower", "lrr": 1.0},)}, "Group has no field 'lrr'; did you mean 'lr'"),
    ({"train": ("tower",), "steps": 0}, "steps=0: it must be an integer of at least 1, or None"),
    ({"train": ("tower",), "lr": -1.0}, "lr=-1.0: it must be a number of at least 0, or None"),
    ({"train": ("tower",), "optimizer": "adam"}, "did you mean 'adamw'"),
    ({"train": ("tower",), "learning_rate": 1.0}, "Stage has no field 'learning_rate'"),
    ({"train": ("tower",), "continues": True, "warmup": 3}, "warmup=3 does not go with continues=True"),
    ({"steps": 3}, "train is needed: groups that train"),
]


@pytest.mark.parametrize(("fields", "words"), BAD)
def test_a_stage_that_cannot_be(fields, words):
    with pytest.raises(ConfigError, match=words):
        Stage(**fields)
    with pytest.raises(ConfigError, match=rf"stages\[0\]: .*{words}"):
        Recipe(stages=[fields])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"stages": (Stage(train=("tower",)), Stage(train=("tower",)))}, r"stages\[0\] needs steps"),
        ({"stages": TWO, "projector_warmup": 2}, "projector_warmup=2 does not go with stages"),
        ({"stages": (Stage(train=("tower",), continues=True),)}, "continues=True needs a stage before it"),
    ],
)
def test_stages_that_do_not_fit_together(fields, words):
    with pytest.raises(ConfigError, match=words):
        Recipe(**fields)


def test_a_recipe_with_stages_is_a_value():
    recipe = Recipe(stages=(Stage(train=(Group(name="projector", lr=0.5), "tower"), steps=3), TWO[1]))
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe and hash(recipe) == hash(recipe.replace())
    assert recipe.digest() != recipe.replace(stages=(TWO[1],)).digest()
    assert recipe.differences(Recipe()) == {"stages": (recipe.stages, ())}
    assert repr(recipe.stages[0]) == "Stage(train=(Group(name='projector', lr=0.5), 'tower'), steps=3)"
    assert diva_rs.Stage is Stage
