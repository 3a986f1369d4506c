"""A method of another package is one file and one entry point."""

import sys

import pytest

from builders.installed import install
from diva_rs.cli import main
from diva_rs.errors import ConfigError
from diva_rs.recipes.presets import presets
from diva_rs.recipes.recipe import Recipe, Stage

METHOD = """
from diva_rs.recipes import Preset
from diva_rs.recipes.stage import Stage

PRESETS = {
    "NAME": Preset(
        summary="a small CLIP, two stages",
        source="arXiv 0000.00000",
        command="diva-rs train --recipe NAME ...",
        expected="1.0 -> 2.0",
        values={
            "lr": (1e-3, "table 4"),
            "stages": (
                (Stage(train=("projector", "denoiser"), steps=3), Stage(train=("tower",), steps=4)),
                "section 3.2",
            ),
        },
    )
}
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes a package with one preset of the given name, as pip would install it."""

    def write(name):
        install(tmp_path, monkeypatch, "some_method", METHOD.replace("NAME", name), "diva_rs.recipes")
        sys.modules.pop("some_method", None)
        presets.cache_clear()

    yield write
    monkeypatch.undo()
    presets.cache_clear()


def test_another_package_adds_a_recipe(package, capsys):
    package("some-vit")
    recipe = Recipe.named("some-vit")
    assert (recipe.lr, recipe.steps, recipe.stages[1]) == (1e-3, 7, Stage(train=("tower",), steps=4))
    assert {"some-vit", "diva-openai-vit-l-14-224"} <= set(Recipe.names())
    assert main(["info", "--recipe", "some-vit"]) == 0
    text = capsys.readouterr().out
    assert "arXiv 0000.00000" in text and "diva-rs train --recipe some-vit ..." in text
    assert "0.001                    table 4" in text and "section 3.2" in text


def test_two_recipes_of_one_name_are_refused(package):
    package("diva-openai-vit-l-14-224")
    with pytest.raises(ConfigError, match="some_method has a preset 'diva-openai-vit-l-14-224', and so has"):
        Recipe.names()
