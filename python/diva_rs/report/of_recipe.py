"""The sections about the recipe: the fields that were decided, with their source, and all the others."""

from typing import Any

from diva_rs.recipes.presets import presets
from diva_rs.recipes.recipe import Recipe
from diva_rs.report.blocks import Section, Table, Text

_CODE = frozenset({0, 1})


def recipe_section(recipe: Recipe) -> Section:
    """The fields that a source or the caller decided.

    >>> recipe_section(Recipe.named("diva-openai-vit-l-14-224")).blocks[1].rows[1]
    ('density', '0.15', 'paper: about 15 % of the local tokens at 224')
    """
    preset = presets().get(recipe.name)
    published = {} if preset is None else preset.fields()
    rows = []
    for name, field in _fields().items():
        value = getattr(recipe, name)
        if preset is not None and name in published and value == published[name]:
            rows.append((name, _value(value), preset.source_of(name)))
        elif value != published.get(name, field.default):
            owner = "the preset has" if name in published else "the default is"
            other = _value(published.get(name, field.default))
            rows.append((name, _value(value), f"set for this run; {owner} {other}"))
    if preset is None:
        about = f"Recipe {recipe.name}, none of the published presets."
    else:
        about = (
            f"Preset {recipe.name}: {preset.summary}. MMVP-VLM average as published, before -> after: "
            f"{preset.expected} %. Measured with diva-rs by its authors: {preset.measured}."
        )
    header = ("Field", "Value", "Source")
    table = Table("Fields that the recipe's source or the caller decided", header, tuple(rows), code=_CODE)
    digest = Text(f"Fingerprint of all fields (SHA-256 of their JSON): {recipe.digest()}", note=True)
    return Section("Recipe", "recipe", (Text(about), table, digest) if rows else (Text(about), digest))


def defaults_section(recipe: Recipe) -> Section:
    """Every other field, so that the run can be repeated with a later version whose defaults differ."""
    preset = presets().get(recipe.name)
    decided = set() if preset is None else preset.fields().keys()
    rows = tuple(
        (name, _value(field.default), str(field.description))
        for name, field in _fields().items()
        if name not in decided and getattr(recipe, name) == field.default
    )
    table = Table("Fields at their defaults", ("Field", "Value", "Meaning"), rows, code=_CODE)
    return Section("Appendix: the recipe's other fields", "defaults", (table,))


def _fields() -> dict[str, Any]:
    return {name: field for name, field in Recipe.model_fields.items() if name != "name"}


def _value(value: Any) -> str:
    """
    >>> _value((0.9, 0.95)), _value(""), _value(1e-4)
    ('0.9, 0.95', "''", '0.0001')
    """
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return repr(value) if value == "" else str(value)
