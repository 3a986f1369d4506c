"""The families of denoisers: one module of this folder each, with its class as ``FAMILY``.

Another package adds a family by an entry point of the group ``diva_rs.families`` that names its class, or by
`register`.
"""

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar

from torch import nn

from diva_rs.diffusion.families.family import Context, Family
from diva_rs.errors import ConfigError

_FamilyClass = TypeVar("_FamilyClass", bound=type[Family])
_registered: list[type[Family]] = []


def register(family: _FamilyClass) -> _FamilyClass:
    """Add a family of denoisers; usable as a decorator of its class.

    >>> from diva_rs.diffusion.families.dit import DiT
    >>> register(DiT) is DiT
    True
    """
    if family not in families():
        _registered.append(family)
    return family


def families() -> tuple[type[Family], ...]:
    """Every family: those of other packages, then those of this folder."""
    return (*_registered, *_found())


def family_of(model: object) -> type[Family] | None:
    """The family that a denoiser belongs to; where several match, the most derived class."""
    if not isinstance(model, nn.Module):
        return None
    matching = [family for family in families() if family.matches(model)]
    return max(matching, key=lambda family: len(family.__mro__), default=None)


def make(model: nn.Module, context: Context, options: Mapping[str, Any]) -> Family:
    """The model in its family, with these options of it."""
    family = family_of(model)
    if family is None:
        raise ConfigError(f"{type(model).__name__} belongs to no family; known are {supported()}")
    for name in options.keys() - family.options:
        raise ConfigError(
            f"a {type(model).__name__} has no option {name}; its options are {sorted(family.options)}"
        )
    return family(model, context, **options)


def supported() -> str:
    """The denoisers that belong to a family, in words."""
    return " or ".join(dict.fromkeys(family.supported for family in families() if family.supported))


def folders() -> tuple[str, ...]:
    """The names that diffusers' pipelines give their denoisers."""
    return tuple(dict.fromkeys(family.folder for family in families()))


@functools.cache
def _found() -> tuple[type[Family], ...]:
    others = [entry.load() for entry in entry_points(group="diva_rs.families")]
    modules = [
        importlib.import_module(f"{__name__}.{entry.name}") for entry in pkgutil.iter_modules(__path__)
    ]
    return (*others, *(module.FAMILY for module in modules if hasattr(module, "FAMILY")))
