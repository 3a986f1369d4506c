"""What a preset is: recipe values, each beside its source, and the score that its source reports."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Values = Mapping[str, tuple[Any, str]]
"""Field -> (value, where the value comes from)."""


@dataclass(frozen=True)
class Preset:
    """A published recipe for one model.

    Attributes:
        summary: the model, and which account of the method this is.
        expected: the MMVP-VLM average that the source reports, in percent, before and after.
        values: the fields that the source decides, each with its source.
        measured: what diva_rs itself measured with this recipe.

    >>> Preset("a model", "1.0 -> 2.0", {"draws": (2, "somewhere")}).fields()
    {'draws': 2}
    """

    summary: str
    expected: str
    values: Values
    measured: str = "not yet run"

    def fields(self) -> dict[str, Any]:
        """The values alone, as keywords for `Recipe`."""
        return {name: value for name, (value, _) in self.values.items()}

    def source(self, name: str) -> str:
        """Where the value of a field comes from; empty where the source says nothing about it."""
        return self.values[name][1] if name in self.values else ""
