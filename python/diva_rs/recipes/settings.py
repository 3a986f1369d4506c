"""What recipes and stages share: frozen values, strict types, and errors in one plain sentence."""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from diva_rs._base.settings import hint
from diva_rs.errors import ConfigError, shown

_LIMIT = 2**63  # of a signed 64-bit integer
_NOUNS = {
    "boolean": "True or False",
    "integer": "an integer",
    "number": "a number",
    "string": "a string",
    "null": "None",
}
_BOUNDS = {
    "minimum": "of at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
    "minLength": "of length at least",
}

Whole = Annotated[int, Field(ge=0, lt=_LIMIT)]
Count = Annotated[int, Field(ge=1, lt=_LIMIT)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "constant"]


class Settings(BaseModel):
    """A frozen set of fields, checked when it is made.

    Types are strict, because a slip such as ``warmup=True`` or ``steps="100"`` must not train for days: a
    bool is no integer, an integer is a number, NumPy scalars become Python's, and lists become tuples.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**{name: _plain(value) for name, value in fields.items()})
        except ValidationError as err:
            raise ConfigError(_sentence(type(self), fields, err)) from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r} of {type(self).__name__}")

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        for name, value in self:
            if value != type(self).model_fields[name].default:
                yield name, value

    __str__ = BaseModel.__repr__

    @classmethod
    def label(cls, field: str) -> str:
        """How a message names a field."""
        return field

    @classmethod
    def fields_help(cls) -> dict[str, str]:
        """Each field's meaning, what it takes and its default.

        >>> diva_rs.Recipe.fields_help()["draws"]
        'diffusion draws (timestep, noise, patches) per image [an integer of at least 1; default 2]'
        """
        texts = {}
        for name, field in cls.model_fields.items():
            default = "needed" if field.is_required() else f"default {field.default!r}"
            texts[name] = f"{_meaning(cls, name)} [{words(schemas(cls)[name])}; {default}]"
        return texts


@cache
def schemas(cls: type[Settings]) -> dict[str, dict[str, Any]]:
    """Field -> its JSON schema."""
    properties: dict[str, dict[str, Any]] = cls.model_json_schema()["properties"]
    return properties


def kind(schema: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    """The schema of a field's values other than None, and whether None is one."""
    kinds = schema.get("anyOf", [schema])
    return kinds[0], kinds[-1].get("type") == "null"


def words(schema: Mapping[str, Any]) -> str:
    """What a field takes.

    >>> words({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]})
    'an integer of at least 1, or None'
    """
    if "anyOf" in schema:
        return ", or ".join(map(words, schema["anyOf"]))
    if "enum" in schema:
        return "one of " + ", ".join(map(repr, schema["enum"]))
    if schema.get("type") == "array":
        items = schema.get("prefixItems") or [schema["items"]]
        many = "one or more" if "minItems" in schema else "several"
        return f"{len(items) if 'prefixItems' in schema else many} values, each {words(items[0])}"
    bounds = [f"{name} {schema[key]}" for key, name in _BOUNDS.items() if schema.get(key, _LIMIT) != _LIMIT]
    return f"{_NOUNS.get(schema.get('type', ''), 'a mapping of fields')} {' and '.join(bounds)}".rstrip()


def _sentence(cls: type[Settings], fields: Mapping[str, Any], err: ValidationError) -> str:
    """The first mistake: where it is, the value, and what is valid."""
    rank = {"extra_forbidden": 0, "value_error": 1, "missing": 3}
    mistake = min(err.errors(include_url=False), key=lambda mistake: rank.get(mistake["type"], 2))
    name, *inner = map(str, mistake["loc"] or [""])
    if mistake["type"] == "extra_forbidden":
        near = hint(name, cls.model_fields) or f": it has {', '.join(cls.model_fields)}"
        return f"{cls.__name__} has no field {shown(name)}{near}"
    if mistake["type"] == "value_error":
        where = name + "".join(f"[{part}]" for part in inner if part.isdecimal())
        return f"{where}: {mistake['ctx']['error']}".removeprefix(": ")
    if name not in fields:
        return f"{cls.label(name)} is needed: {_meaning(cls, name)}"
    value, schema = fields[name], schemas(cls)[name]
    near = hint(value, kind(schema)[0].get("enum", ()))
    return f"{cls.label(name)}={shown(value)}: it must be {words(schema)}{near}"


def _meaning(cls: type[Settings], field: str) -> str:
    return " ".join(str(cls.model_fields[field].description).split())


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return tuple(item.item() if isinstance(item, np.generic) else item for item in value)
    return value
