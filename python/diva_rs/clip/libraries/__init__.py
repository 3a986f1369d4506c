"""The libraries whose CLIP models have an adapter: one module of this folder each.

A module of a library holds what `Library` names. Another package adds a library by an entry point of the
group ``diva_rs.clips`` that names its module; these modules are tried first.
"""

import functools
import importlib
import pkgutil
from importlib.metadata import entry_points
from typing import Protocol

from torch import nn

from diva_rs.clip.tower import Tower


class Library(Protocol):
    """The adapter of one library: a module, or any object with these names."""

    SUPPORTED: str  # which models, for error messages

    def matches(self, model: nn.Module) -> bool:
        """Whether this library's code computes what ``model`` computes."""

    def build(self, model: nn.Module, where: str) -> Tower:
        """The tower over a model that matches; ``where`` is its attribute in the caller's model, or ""."""


@functools.cache
def libraries() -> tuple[Library, ...]:
    """Every adapter: those of other packages, then those of this folder."""
    others = [entry.load() for entry in entry_points(group="diva_rs.clips")]
    own = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return (*others, *own)
