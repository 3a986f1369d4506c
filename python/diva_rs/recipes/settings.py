"""What recipes and stages share: frozen values, strict types, and errors in one plain sentence."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from diva_rs._base.settings import hint
from diva_rs.errors import ConfigError, shown

_HIGHEST = 2**63 - 1  # of a signed 64-bit integer

Whole = Annotated[int, Field(ge=0, le=_HIGHEST)]
Count = Annotated[int, Field(ge=1, le=_HIGHEST)]
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
    noun: ClassVar[str] = "a set of settings"

    def __init__(self, **fields: Any) -> None:
        self.check_names(fields)
        try:
            super().__init__(**{name: _plain(value) for name, value in fields.items()})
        except ValidationError as err:
            raise ConfigError(_sentence(type(self), fields, err)) from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r} of {self.noun}")

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
    def check_names(cls, names: Iterable[Any]) -> None:
        """Raise ConfigError, with near names, for a name that is no field."""
        known = cls.model_fields
        for name in names:
            if name not in known:
                near = hint(name, known) or f": it has {', '.join(known)}"
                raise ConfigError(f"{cls.noun} has no field {shown(name)}{near}")


@cache
def schemas(cls: type[Settings]) -> dict[str, dict[str, Any]]:
    """Field -> its JSON schema."""
    properties: dict[str, dict[str, Any]] = cls.model_json_schema()["properties"]
    return properties


def fields_help(cls: type[Settings]) -> dict[str, str]:
    """Each field's meaning, what it takes and its default."""
    texts = {}
    for name, field in cls.model_fields.items():
        default = "needed" if field.is_required() else f"default {field.default!r}"
        texts[name] = f"{_meaning(cls, name)} [{words(schemas(cls)[name])}; {default}]"
    return texts


def kind(schema: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    """The schema of a field's values other than None, and whether None is one."""
    kinds = schema.get("anyOf", [schema])
    return kinds[0], kinds[-1].get("type") == "null"


def words(schema: Mapping[str, Any]) -> str:
    """What a field takes.

    >>> words({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]})
    'an integer of at least 1, or None'
    """
    one, optional = kind(schema)
    return _words(one) + (", or None" if optional else "")


def _words(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return "one of " + ", ".join(map(repr, schema["enum"]))
    if schema.get("type") == "array":
        item, _ = kind(schema["items"] if "items" in schema else schema["prefixItems"][0])
        _, noun, *bounds = _words(item).split(" ", 2)
        many = "one or more" if schema.get("minItems") else "several"
        count = schema["minItems"] if "prefixItems" in schema else many
        return " ".join([f"{count} {noun}s", *bounds])
    names = {"boolean": "True or False", "integer": "an integer", "number": "a number", "string": "a string"}
    text = names.get(schema.get("type", ""), "a mapping of fields")
    if schema.get("minLength"):
        return f"{text} that is not empty"
    bounds = [
        f"{name} {schema[key]:g}" if isinstance(schema[key], float) else f"{name} {schema[key]}"
        for key, name in _BOUNDS.items()
        if key in schema and schema[key] != _HIGHEST
    ]
    return " ".join([text, " and ".join(bounds)]).rstrip()


_BOUNDS = {
    "minimum": "of at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}


def refusal(schema: Mapping[str, Any], value: Any) -> str:
    """Why a field does not take a value.

    >>> refusal({"enum": ["sgd", "adamw"]}, "adam")
    "one of 'sgd', 'adamw' is needed; did you mean 'adamw'?"
    """
    one, optional = kind(schema)
    verb = "are" if one.get("type") == "array" else "is"
    text = _words(one)
    if isinstance(value, int) and value > _HIGHEST and one.get("maximum") == _HIGHEST:
        text += " and below 2**63"
    return f"{text} {verb} needed{hint(value, one.get('enum', ()))}" + (", or None" if optional else "")


def _sentence(cls: type[Settings], fields: Mapping[str, Any], err: ValidationError) -> str:
    """The first mistake: where it is, the value, and what is valid."""
    rank = {"value_error": 0, "missing": 2}
    mistake = min(err.errors(include_url=False), key=lambda mistake: rank.get(mistake["type"], 1))
    place = [part for part in mistake["loc"] if part in fields or isinstance(part, int)]
    if mistake["type"] == "value_error":
        where = "".join(f"[{part}]" if isinstance(part, int) else part for part in place)
        return f"{where}: {mistake['ctx']['error']}".removeprefix(": ")
    name = str(mistake["loc"][0])
    if name not in fields:
        return f"{cls.noun} needs {cls.label(name)}: {_meaning(cls, name)}"
    return f"{cls.label(name)}={shown(fields[name])}: {refusal(schemas(cls)[name], fields[name])}"


def _meaning(cls: type[Settings], field: str) -> str:
    return " ".join(str(cls.model_fields[field].description).split())


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return tuple(item.item() if isinstance(item, np.generic) else item for item in value)
    return value
