"""Flags from the fields of a command's settings: names, types, ranges, defaults; and from text to values."""

import argparse
import json
import re
import shlex
from collections.abc import Container, Iterable, Mapping
from typing import Any

from pydantic import field_validator

from diva_rs._base.files import as_path
from diva_rs.recipes.settings import Settings, kind, schemas


class Options(Settings):
    """The settings of a command; each field is a flag. A path may begin with ``~``, the home folder."""

    @field_validator("*", mode="before")
    @classmethod
    def _from_home(cls, value: Any) -> Any:
        model, colon, path = value.rpartition(":") if isinstance(value, str) else ("", "", "")
        return f"{model}{colon}{as_path(path)}" if path.startswith("~") else value

    def only(self, *names: str) -> dict[str, Any]:
        """These fields, as keyword arguments of what the command calls."""
        return {name: getattr(self, name) for name in names}

    @classmethod
    def label(cls, field: str) -> str:
        """The field's flag."""
        return "--" + field.replace("_", "-")


_PLAIN = {  # Python's words in a field's description
    " None": " none",
    "a string of length at least 1": "text",
    "; needed]": "; required]",
    "[True or False; default False]": "[off by default]",
    "[True or False; default True]": "[on by default]",
}


def add_flags(parser: Any, cls: type[Settings], names: Iterable[str] | None = None) -> None:
    """Give a parser a flag for each field, or for those that are named."""
    texts = cls.fields_help()
    for name in cls.model_fields if names is None else names:
        schema, _ = kind(schemas(cls)[name])
        form: dict[str, Any] = {"metavar": _metavar(schema)}
        if schema.get("type") == "boolean":
            form = {"action": argparse.BooleanOptionalAction}
        elif schema.get("items", {}).get("type") == "string":
            form = {"metavar": "TEXT", "action": "append"}
        text = texts[name].replace("%", "%%")
        for python, plain in _PLAIN.items():
            text = text.replace(python, plain)
        parser.add_argument(Options.label(name), default=argparse.SUPPRESS, help=text, **form)


def given(found: Mapping[str, Any], cls: type[Settings]) -> dict[str, Any]:
    """The fields among what a command line or a file gives, with values for texts."""
    return {name: parsed(found[name], schema) for name, schema in schemas(cls).items() if name in found}


def parsed(text: Any, schema: Mapping[str, Any]) -> Any:
    """The value that a flag's text means, or the text itself, which the field then refuses.

    >>> parsed("5,1", {"type": "array", "items": {"type": "number"}}), parsed("x", {"type": "number"})
    ((5.0, 1.0), 'x')
    """
    if not isinstance(text, str):
        return text
    one, optional = kind(schema)
    if optional and text.lower() == "none":
        return None
    try:
        if one.get("type") == "array":
            item = one["items"] if "items" in one else one["prefixItems"][0]
            if "$ref" in item:
                return json.loads(text)
            parts = tuple(parsed(part, item) for part in text.split(","))
            return text if any(isinstance(part, str) for part in parts) else parts
        return {"integer": int, "number": float}.get(one.get("type", ""), str)(text)
    except (ValueError, RecursionError):
        return text


_PYTHON = re.compile(
    r"""\w+\((?:[^()]|\([^()]*\))*\)  # a call, whose arguments are not flags
    | (?<![\w./-])(?:--)?(?P<name>[a-z][\w-]*)=
    (?:(?P<switch>True|False|(?=\W*$|[:;,]?\s))|(?P<quote>["'])(?P<text>.*?)(?P=quote)|(?P<many>\(.*?\)|\[.*?\]))?""",
    re.VERBOSE,
)
_ELSEWHERE = {"resume=False": "--overwrite"}  # arguments whose flag has another name


def in_flags(message: str, known: Container[str]) -> str:
    """The message with ``name=value`` as it stands on a command line that has the flags ``known``.

    >>> in_flags("steps=5 and bernoulli=True: give text='none'", ["--steps", "--bernoulli", "--text"])
    '--steps=5 and --bernoulli: give --text=none'
    """

    def flag(found: re.Match[str]) -> str:
        option = f"--{(found['name'] or '').replace('_', '-')}"
        if found[0] in _ELSEWHERE and "--overwrite" in known:
            return _ELSEWHERE[found[0]]
        if option not in known:
            return found[0]
        if found["switch"] is not None:
            return option.replace("--", "--no-", found["switch"] == "False")
        many = re.sub(r"""[][()"' ]""", "", found["many"] or "").removesuffix(",")
        return f"{option}={many or (shlex.quote(found['text']) if found['quote'] else '')}"

    return message if message.startswith("config ") else _PYTHON.sub(flag, message)


def _metavar(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return "{" + ",".join(schema["enum"]) + "}"
    if "prefixItems" in schema:
        return ",".join(map(_metavar, schema["prefixItems"]))
    if schema.get("type") == "array":
        return "JSON" if "$ref" in schema["items"] else f"{_metavar(schema['items'])},..."
    return {"integer": "N", "number": "X"}.get(schema.get("type", ""), "TEXT")
