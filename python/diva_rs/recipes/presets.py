"""Presets: published recipes, found in this folder's modules and in those of other packages.

A module with presets holds ``PRESETS``, a dict of name -> `Preset`. A new method is one new file here.
Another package names its module in the entry-point group ``diva_rs.recipes``.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from diva_rs.errors import ConfigError

Values = Mapping[str, tuple[Any, str]]
"""Field -> (value, where the value comes from)."""


@dataclass(frozen=True)
class Preset:
    """A published recipe for one model."""

    summary: str  # the model, and which account of the method this is
    source: str  # the paper and the code that the preset follows
    command: str  # how to run it
    expected: str  # the MMVP-VLM average that the source reports, in percent, before and after
    values: Values  # the fields that the source decides
    measured: str = "not yet run"  # what diva_rs itself measured with this recipe
    teacher: str = "any"  # the kind of generative model that it needs
    images: str = "any"  # what it was published with
    memory: str = "not measured"  # of a step, where it was measured
    slots: tuple[str, ...] = ()  # that the teacher must have, and no others; empty: any

    def fields(self) -> dict[str, Any]:
        """The values alone, as keywords for `Recipe`."""
        return {name: value for name, (value, _) in self.values.items()}

    def describe(self) -> list[str]:
        """What it is, line by line."""
        return [
            f"  {self.summary}",
            f"  {self.source}",
            f"  {self.command}",
            *self.needs(),
        ]

    def needs(self) -> list[str]:
        """What it needs, and the scores, line by line."""
        return [
            f"  teacher: {self.teacher}",
            f"  images: {self.images}",
            f"  memory: {self.memory}",
            f"  MMVP-VLM average, published: {self.expected} %",
            f"  MMVP-VLM average, measured here: {self.measured}",
        ]

    def source_of(self, field: str) -> str:
        """Where the value of a field comes from; empty where the source says nothing about it."""
        return self.values[field][1] if field in self.values else ""


def check_slots(recipe: str, slots: tuple[str, ...]) -> None:
    """Raise ConfigError where the preset of this name needs a teacher with other slots than ``slots``."""
    preset = presets().get(recipe)
    if preset is not None and preset.slots not in ((), slots):
        needed, found = (" and ".join(names) for names in (preset.slots, slots))
        raise ConfigError(
            f"{recipe} conditions its teacher through {needed}, this one takes its condition through "
            f"{found}: give {preset.teacher}"
        )


@cache
def presets() -> dict[str, Preset]:
    """All presets by name; ConfigError where two modules have one of the same name."""
    folder = importlib.import_module(__package__).__path__
    modules = [importlib.import_module(f"{__package__}.{file.name}") for file in pkgutil.iter_modules(folder)]
    modules += [point.load() for point in entry_points(group="diva_rs.recipes")]
    found: dict[str, Preset] = {}
    for module in modules:
        for name, preset in getattr(module, "PRESETS", {}).items():
            if name in found:
                raise ConfigError(f"{module.__name__} has a preset {name!r}, and so has another module")
            found[name] = preset
    return found
