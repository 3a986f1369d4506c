"""A result object from the JSON that its ``to_dict`` became, checked field by field."""

import dataclasses
import math
import types
import typing
from typing import Any, TypeVar

from diva_rs.errors import DataError

T = TypeVar("T")


def decode(kind: type[T], content: Any, where: str) -> T:
    """An object of the dataclass ``kind``; keys that it has no field for (computed values) are passed over.

    Args:
        kind: a dataclass whose fields are numbers, strings, bools, tuples, dicts, other such dataclasses, or
            None.
        content: what JSON holds: a mapping of its fields. A tuple of bools may be a string of 0 and 1.
        where: names the file, for errors.

    Raises:
        DataError: a field is missing or holds something else; names file and field.

    >>> from diva_rs.evaluation import DriftResult
    >>> decode(DriftResult, {"cosine": 0.9, "lowest": 0.8, "cka": 0.99, "cosines": [1, 0.8]}, "a.json")
    DriftResult(cosine=0.9, lowest=0.8, cka=0.99)
    >>> decode(DriftResult, {"cosine": "high"}, "a.json")
    Traceback (most recent call last):
    diva_rs.errors.DataError: a.json: cosine is 'high', not a number
    """
    decoded: T = _of(kind, content, where, "")
    return decoded


def _of(kind: Any, content: Any, where: str, path: str) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        some = next(option for option in inner if option is not type(None))
        return None if content is None else _of(some, content, where, path)
    if dataclasses.is_dataclass(kind):
        _need(isinstance(content, dict), content, "an object", where, path)
        return _fields(kind, content, where, path)
    if origin is dict:
        _need(isinstance(content, dict), content, "an object", where, path)
        return {str(key): _of(inner[1], value, where, f"{path}.{key}") for key, value in content.items()}
    if origin is tuple:
        if inner == (bool, ...) and isinstance(content, str):
            _need(set(content) <= {"0", "1"}, content, "a string of 0 and 1", where, path)
            return tuple(letter == "1" for letter in content)
        _need(isinstance(content, list), content, "a list", where, path)
        endless = len(inner) == 2 and inner[1] is Ellipsis
        _need(endless or len(content) == len(inner), content, f"a list of {len(inner)}", where, path)
        kinds = inner[:1] * len(content) if endless else inner
        parts = zip(kinds, content, strict=True)
        return tuple(_of(each, value, where, f"{path}[{n}]") for n, (each, value) in enumerate(parts))
    return _plain(kind, content, where, path)


def _fields(kind: Any, content: dict[str, Any], where: str, path: str) -> Any:
    hints = typing.get_type_hints(kind)
    values = {}
    for field in dataclasses.fields(kind):
        inside = f"{path}.{field.name}".lstrip(".")
        if field.name in content:
            values[field.name] = _of(hints[field.name], content[field.name], where, inside)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise DataError(f"{where}: {inside} is missing")
    return kind(**values)


def _plain(kind: Any, content: Any, where: str, path: str) -> Any:
    number = isinstance(content, (int, float)) and not isinstance(content, bool)
    if kind is float:
        _need(number and math.isfinite(content), content, "a number", where, path)
        return float(content)
    words = {int: "a whole number", str: "a string", bool: "true or false"}[kind]
    _need(isinstance(content, kind) and (kind is not int or number), content, words, where, path)
    return content


def _need(fits: bool, content: Any, words: str, where: str, path: str) -> None:
    if not fits:
        shown = repr(content)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise DataError(f"{where}: {path or 'the whole'} is {shown}, not {words}")
