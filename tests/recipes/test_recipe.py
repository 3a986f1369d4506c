"""The recipe: strict values, clear messages, presets that hold what the paper and the official code say."""

import dataclasses
import hashlib
import json
import pickle
from typing import get_type_hints

import numpy as np
import pytest
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

from diva_rs.errors import ConfigError, shown
from diva_rs.recipes.fields import RecipeFields
from diva_rs.recipes.presets import presets
from diva_rs.recipes.recipe import _LATER, Recipe
from diva_rs.recipes.stage import WEIGHTS

# MMVP-VLM averages before and after, as published.
SCORES = {
    "openai-vit-l-14-224": "19.3 -> 25.9",
    "openai-vit-l-14-336": "20.0 -> 25.2",
    "metaclip-vit-l-14-224": "23.7 -> 27.4",
    "metaclip-vit-h-14-224": "25.2 -> 31.9",
    "dfn-vit-h-14-224": "39.3 -> 43.7",
    "dfn-vit-h-14-378": "34.8 -> 37.8",
    "siglip-so400m-14-224": "37.8 -> 40.7",
    "siglip-so400m-14-384": "37.0 -> 38.5",
}
MODELS = tuple(SCORES)
PATCHES = dict(zip(MODELS, (256, 576, 256, 256, 256, 729, 256, 729), strict=True))
# Rows of the condition, the first token and the local ones: of the official code, of the paper.
OFFICIAL_ROWS = dict(zip(MODELS, (77, 77, 257, 257, 257, 365, 43, 73), strict=True))
PAPER_ROWS = dict(zip(MODELS, (39, 174, 257, 257, 257, 365, 43, 73), strict=True))


BAD = [
    ("name", "", "a string of length at least 1"),
    ("condition", "windows", "did you mean 'window'"),
    ("choose", -1, "an integer of at least 0, or None"),
    ("density", 1.01, "a number of at least 0 and at most 1, or None"),
    ("density", float("nan"), "a number of at least 0 and at most 1"),
    ("replacement", 1, "True or False"),
    ("prompt", None, "a string"),
    ("draws", 0, "an integer of at least 1"),
    ("draws", True, "an integer of at least 1"),
    ("draws", "2", "an integer of at least 1"),
    ("draws", 2**63, "an integer of at least 1"),
    ("draw_weights", (), "one or more values, each a number of at least 0, or None"),
    ("draw_weights", (1.0, -1.0), "one or more values, each a number of at least 0"),
    ("timestep_range", (0.0, 10.0), "2 values, each an integer of at least 0, or None"),
    ("timestep_range", (0, 10, 20), "2 values, each an integer of at least 0"),
    ("logit_mean", float("inf"), "a number"),
    ("logit_std", 0.0, "a number above 0"),
    ("lr", True, "a number of at least 0"),
    ("lr", 10**400, "a number of at least 0"),
    ("betas", (0.9, 1.0), "2 values, each a number of at least 0 and below 1"),
    ("betas", (0.9,), "2 values, each a number of at least 0 and below 1"),
    ("stages", 3, "several values, each a mapping of fields"),
    ("seed", 2**64, "an integer of at least 0 and at most 18446744073709551615"),
]


@pytest.mark.parametrize(("field", "value", "words"), BAD)
def test_a_bad_value_names_the_field_the_value_and_what_is_valid(field, value, words):
    with pytest.raises(ConfigError) as error:
        Recipe(**{field: value})
    assert str(error.value).startswith(f"{field}={shown(value)}: it must be ") and words in str(error.value)


def test_no_field_takes_an_object():
    for field in Recipe.model_fields:
        with pytest.raises(ConfigError, match=f"{field}=<object object at .*: it must be "):
            Recipe(**{field: object()})


CONTRADICTIONS = [
    ({"choose": 3, "density": 0.5}, "choose=3 and density=0.5 exclude each other"),
    ({"condition": "window"}, "condition='window' needs window"),
    ({"text": "broadcast"}, "broadcast' adds one visual token .* use condition='class'"),
    ({"condition": "class", "class_tokens": 2, "text": "broadcast"}, "class_tokens=2 gives several"),
    ({"class_tokens": 2}, "class_tokens=2 means nothing with condition='random'"),
    (
        {"projector": "identity", "projector_start": "zero"},
        "no weights: projector_start='zero' means nothing",
    ),
    ({"window": 3}, "window=3 means nothing with condition='random'"),
    ({"condition": "all", "choose": 3}, "choose=3 means nothing with condition='all'"),
    ({"condition": "text", "bernoulli": True}, "bernoulli=True means nothing"),
    ({"bernoulli": True}, "bernoulli=True needs density"),
    ({"bernoulli": True, "density": 0.5, "replacement": True}, "bernoulli=True and replacement=True"),
    ({"condition": "text", "text": "none"}, "leaves no condition"),
    ({"draws": 3, "draw_weights": (5, 1)}, "holds 2 weights for draws=3"),
    ({"draw_weights": (0, 0)}, "all zero"),
    ({"timestep_range": (500, 100)}, "is empty"),
]


@pytest.mark.parametrize(("fields", "words"), CONTRADICTIONS)
def test_fields_that_contradict_each_other_are_refused(fields, words):
    with pytest.raises(ConfigError, match=words):
        Recipe(**fields)


def test_numpy_scalars_and_lists_become_plain_values():
    recipe = Recipe(
        draws=np.int64(2),
        lr=np.float32(0.5),
        antialias=np.bool_(False),
        betas=np.array([0.5, 0.25]),
        timestep_range=[0, np.int32(9)],
        momentum=0,
    )
    assert recipe == Recipe(
        draws=2, lr=0.5, antialias=False, betas=(0.5, 0.25), timestep_range=(0, 9), momentum=0.0
    )
    plain = {name: type(getattr(recipe, name)) for name in ("draws", "lr", "antialias", "betas", "momentum")}
    assert plain == {"draws": int, "lr": float, "antialias": bool, "betas": tuple, "momentum": float}


def test_frozen_hashable_keyword_only_and_picklable():
    recipe = Recipe.named(Recipe.names()[0])
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.lr = 1.0
    with pytest.raises(TypeError):
        Recipe("custom")
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert {recipe: 1}[Recipe.named(recipe.name)] == 1
    assert repr(Recipe(lr=0.5, betas=[0.5, 0.5])) == "Recipe(lr=0.5, betas=(0.5, 0.5))"


def test_replace_checks_and_leaves_the_original_alone():
    recipe = Recipe(lr=0.5)
    assert recipe.replace(steps=7) == Recipe(lr=0.5, steps=7)
    assert recipe.steps is None
    assert recipe.replace() == recipe
    with pytest.raises(ConfigError, match="steps=0: it must be an integer"):
        recipe.replace(steps=0)
    with pytest.raises(ConfigError, match="no field 'learning_rate': it has name, condition"):
        recipe.replace(learning_rate=1.0)
    with pytest.raises(ConfigError, match="no field 'micro_bach'; did you mean 'micro_batch'"):
        recipe.replace(micro_bach=1)


def test_replace_trades_choose_for_density_and_back():
    official = Recipe.named("diva-official-openai-vit-l-14-224")
    denser = official.replace(density=0.5)
    assert (denser.choose, denser.density, denser.replacement) == (None, 0.5, True)
    assert (denser.replace(choose=4).choose, denser.replace(choose=4).density) == (4, None)
    coins = Recipe(density=0.5, bernoulli=True).replace(choose=4)
    assert (coins.choose, coins.bernoulli) == (4, False)
    with pytest.raises(ConfigError, match="exclude each other"):
        official.replace(choose=4, density=0.5)
    assert official.replace(choose=None).density is None


def test_replace_of_the_condition_drops_the_settings_of_the_old_one():
    official = Recipe.named("diva-official-openai-vit-l-14-224")
    for condition in ("class", "all", "text"):
        other = official.replace(condition=condition)
        assert (other.choose, other.replacement) == (None, False)
    assert official.replace(condition="random").choose == 76
    window = Recipe.named("diva-siglip-so400m-14-224")
    assert window.replace(condition="random", choose=5).window is None
    assert official.replace(condition="window", window=4).choose is None
    with pytest.raises(ConfigError, match="needs window"):
        official.replace(condition="window")


def test_dicts_and_json_round_trip():
    for recipe in (Recipe(), *map(Recipe.named, Recipe.names())):
        assert Recipe.from_dict(recipe.to_dict()) == recipe
        assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert Recipe.from_dict({"draws": 3}) == Recipe(draws=3)
    with pytest.raises(ConfigError, match="no field 'drawz'; did you mean 'draws'"):
        Recipe.from_dict({"drawz": 3})
    deep = [0.5]
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(ConfigError, match="betas="):
        Recipe.from_dict({"betas": deep})
    with pytest.raises(ConfigError, match="mapping of fields, not a list"):
        Recipe.from_dict([("draws", 3)])


def test_the_keyword_arguments_are_the_fields():
    assert get_type_hints(RecipeFields) == {
        name: get_type_hints(Recipe)[name] for name in Recipe.model_fields
    }


def test_a_json_schema_describes_the_fields():
    schema = Recipe.model_json_schema()
    assert schema["properties"].keys() == Recipe.model_fields.keys()
    assert schema["properties"]["optimizer"]["enum"] == ["sgd", "adamw"]
    assert schema["properties"]["density"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 1}
    assert schema["$defs"]["Stage"]["required"] == ["train"]


def test_chosen():
    chosen = [Recipe(density=density).chosen(256) for density in (0, 0.001, 0.15, 0.3, 1)]
    assert chosen == [0, 1, 38, 77, 256]
    assert Recipe().chosen(100) == 30
    assert Recipe(choose=0).chosen(4) == 0
    assert Recipe(choose=4).chosen(4) == 4
    assert Recipe(choose=9, replacement=True).chosen(4) == 9
    assert Recipe(condition="class").chosen(256) == Recipe(condition="text").chosen(256) == 0
    assert Recipe(condition="all").chosen(256) == 256
    assert Recipe(condition="window", window=6).chosen(256) == 42
    assert Recipe(condition="window", window=4).chosen(4) == 1
    assert Recipe(density=0.5, bernoulli=True).chosen(256) == 256
    with pytest.raises(ConfigError, match=r"choose=5 is more than the tower's 4 patches: choose at most 4"):
        Recipe(choose=5).chosen(4)
    with pytest.raises(ConfigError, match=r"window=5 is wider than the tower's 4 patches"):
        Recipe(condition="window", window=5).chosen(4)


def test_digest_tells_recipes_apart():
    recipes = [
        Recipe(),
        Recipe(lr=1e-5),
        Recipe(draws=3),
        Recipe(denoising=0.5),
        *map(Recipe.named, Recipe.names()),
    ]
    assert len({recipe.digest() for recipe in recipes}) == len(recipes)
    assert Recipe(momentum=0).digest() == Recipe(momentum=0.0).digest()
    for recipe in recipes:
        # Whoever has the JSON of a run can check it without this library.
        values = json.loads(json.dumps(recipe.to_dict()))
        for name in ("log_every", "max_skipped", "checkpoint_every", "keep"):
            del values[name]
        for name in _LATER:  # as in runs from before these fields
            if values[name] == Recipe().to_dict()[name]:
                del values[name]
        for stage in values["stages"]:
            for name in [name for name in WEIGHTS if stage[name] is None]:
                del stage[name]
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        assert recipe.digest() == hashlib.sha256(text.encode()).hexdigest()


def test_names_are_two_presets_for_each_model():
    own = [name for name in Recipe.names() if name.startswith("diva-")]
    assert sorted(own) == sorted([*(f"diva-{m}" for m in MODELS), *(f"diva-official-{m}" for m in MODELS)])
    assert all(Recipe.named(name).name == name for name in Recipe.names())


def test_an_unknown_name_suggests_near_ones():
    with pytest.raises(
        ConfigError, match=r"no recipe 'diva-openai-vit-l14-224'; did you mean 'diva-openai-vit-l-14-224'"
    ):
        Recipe.named("diva-openai-vit-l14-224")
    with pytest.raises(ConfigError, match=r"no recipe 'x': one of .*diva-openai"):
        Recipe.named("x")
    with pytest.raises(ConfigError, match=r"no recipe None"):
        Recipe.named(None)


# What every preset of an account shares.
COMMON = {"optimizer": "sgd", "lr": 1e-4, "momentum": 0.9, "schedule": "cosine", "steps": 4600, "batch": 640}
COMMON |= {"draws": 2, "grad_clip": 1.0, "projector": "linear", "timesteps": "uniform", "loss": "mse"}
PAPER = {"prompt": "", "draw_weights": None, "clip_mean": None, "clip_std": None, "precision": "fp32"}
PAPER |= {"vae_pixels": "symmetric", "resize": "bicubic", "antialias": True, "replacement": False}
OFFICIAL = {"prompt": "a photo of a .", "draw_weights": (5.0, 1.0), "vae_pixels": "official", "seed": 42}
OFFICIAL |= {"clip_mean": OPENAI_DATASET_MEAN, "clip_std": OPENAI_DATASET_STD, "precision": "bf16"}
OFFICIAL |= {"resize": "bilinear", "antialias": False, "image_size": 512, "latent": "mean", "warmup": 23}


@pytest.mark.parametrize("model", MODELS)
def test_official_presets_hold_what_the_official_code_computes(model):
    recipe = Recipe.named(f"diva-official-{model}")
    expected = {**COMMON, **OFFICIAL, "text": "add" if "openai" in model else "mean"}
    assert {name: getattr(recipe, name) for name in expected} == expected
    assert recipe.replacement == (recipe.condition == "random")
    assert 1 + recipe.chosen(PATCHES[model]) == OFFICIAL_ROWS[model]


@pytest.mark.parametrize("model", MODELS)
def test_paper_presets_hold_what_the_paper_says_on_correct_pixels(model):
    recipe = Recipe.named(f"diva-{model}")
    assert {name: getattr(recipe, name) for name in {**COMMON, **PAPER}} == {**COMMON, **PAPER}
    assert 1 + recipe.chosen(PATCHES[model]) == PAPER_ROWS[model]


@pytest.mark.parametrize("name", list(presets()))
def test_presets_name_a_source_for_each_value_and_the_published_score(name):
    preset = presets()[name]
    model = name.removeprefix("diva-").removeprefix("official-")
    assert not name.startswith("diva-") or preset.expected == SCORES[model]
    assert all(source for _, source in preset.values.values())
    text = Recipe.named(name).describe()
    assert f"published: {preset.expected}" in text and "any" not in (preset.teacher, preset.images)
    assert "measured here: not yet run" in text
    for field, (value, source) in preset.values.items():
        [line] = [line for line in text.splitlines() if line[2:].split(" ")[0] == field]
        assert repr(value) in line and line.endswith(source)


def test_describe_marks_what_differs_from_the_defaults_and_from_the_preset():
    marked = [line for line in Recipe(lr=1e-5, draws=3).describe().splitlines() if line.startswith("*")]
    assert [line.split() for line in marked] == [["*", "draws", "3"], ["*", "lr", "1e-05"]]
    changed = Recipe.named("diva-openai-vit-l-14-224").replace(lr=1e-5, anchor=0.1).describe()
    assert "1e-05                    changed: the preset has 0.0001" in changed
    assert "0.1                      changed: the preset has 0.0" in changed
    assert changed.count("changed:") == 2
    named = {line[2:].split(" ")[0] for line in Recipe().describe().splitlines()[2:]}
    assert named == Recipe.model_fields.keys() - {"name"}


def test_fields_help_covers_every_field():
    texts = Recipe.fields_help()
    assert list(texts) == list(Recipe.model_fields)
    assert texts["lr"] == "learning rate [a number of at least 0; default 0.0001]"
    assert "with window means, with all patches" in texts["condition"] and "None [" not in str(texts)
    assert texts["steps"].endswith("[an integer of at least 1, or None; default None]")
