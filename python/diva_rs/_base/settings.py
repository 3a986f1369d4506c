"""Kinds of recipe values: what a field may hold, how it is checked, and how the command line writes it.

Types are strict, because a slip such as ``warmup=True`` or ``steps="100"`` must not train for days: a bool is
no integer, an integer is a number, NumPy scalars become Python's, and lists become tuples. Raised here are
plain ValueErrors without the field's name; `Recipe` adds it.
"""

import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

_HIGHEST = (1 << 63) - 1  # what a signed 64-bit integer holds: no count of anything is higher


@dataclass(frozen=True)
class Kind:
    """One kind of value.

    Attributes:
        words: what is valid, for messages and ``--help``.
        convert: a Python value -> the value as it is kept; raises ValueError.
        parse: the text of a command-line flag -> a value for ``convert``; raises ValueError.
        metavar: the flag's placeholder.
    """

    words: str
    convert: Callable[[Any], Any]
    parse: Callable[[str], Any]
    metavar: str = "X"


def choice(*names: str) -> Kind:
    """One of the given names.

    >>> choice("sgd", "adamw").convert("adam")
    Traceback (most recent call last):
    ValueError: one of 'sgd', 'adamw' is needed; did you mean 'adamw'?
    """
    words = "one of " + ", ".join(map(repr, names))

    def convert(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"{words} is needed{hint(value, names)}")
        return str(value)

    return Kind(words, convert, str, "{" + ",".join(names) + "}")


def string(least: int = 0) -> Kind:
    """A string of at least ``least`` characters.

    >>> string().convert("a photo of a .")
    'a photo of a .'
    """
    words = "a string" if least == 0 else "a string that is not empty"

    def convert(value: Any) -> str:
        if not isinstance(value, str) or len(value) < least:
            raise ValueError(f"{words} is needed")
        return str(value)

    return Kind(words, convert, str, "TEXT")


def flag() -> Kind:
    """True or False, and nothing that merely looks like it.

    >>> flag().convert(np.True_)
    True
    """

    def convert(value: Any) -> bool:
        value = _plain(value)
        if not isinstance(value, bool):
            raise ValueError("True or False is needed")
        return value

    def parse(text: str) -> bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("true or false is needed")
        return text.lower() == "true"

    return Kind("True or False", convert, parse)


def integer(least: int, most: int | None = None) -> Kind:
    """A whole number in [least, most]; without ``most`` it has to fit 64 bits.

    >>> integer(least=1).convert(True)
    Traceback (most recent call last):
    ValueError: an integer of at least 1 is needed
    """
    words = f"an integer of at least {least}" + ("" if most is None else f" and at most {most}")

    def convert(value: Any) -> int:
        value = _plain(value)
        inside = isinstance(value, int) and not isinstance(value, bool)
        if inside and most is None and value > _HIGHEST:
            raise ValueError(f"{words} and below 2**63 is needed")
        if not inside or value < least or (most is not None and value > most):
            raise ValueError(f"{words} is needed")
        return int(value)

    return Kind(words, convert, int, "N")


def number(
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Kind:
    """A finite number between bounds; ``least`` and ``most`` are in the range, ``above`` and ``below`` not.

    >>> number(least=0.0, below=1.0).convert(1)
    Traceback (most recent call last):
    ValueError: a number of at least 0 and below 1 is needed
    """
    bounds = [("of at least", least), ("above", above), ("at most", most), ("below", below)]
    words = " and ".join(f"{name} {bound:g}" for name, bound in bounds if bound is not None)
    words = f"a number {words}".rstrip()

    def convert(value: Any) -> float:
        value = _plain(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{words} is needed")
        low = (least is None or value >= least) and (above is None or value > above)
        if not low or (most is not None and value > most) or (below is not None and value >= below):
            raise ValueError(f"{words} is needed")
        return float(value)

    return Kind(words, convert, float, "X")


def several(item: Kind, count: int | None = None) -> Kind:
    """A tuple of ``count`` values of one kind, an integer or a number (None: one or more).

    >>> several(number(least=0.0), 2).convert([0.9, 1])
    (0.9, 1.0)
    """
    _, noun, *rest = item.words.split(" ", 2)  # "a number of at least 0"
    words = " ".join([f"{count or 'one or more'} {noun}s", *rest])

    def convert(value: Any) -> tuple[Any, ...]:
        values = value.tolist() if isinstance(value, np.ndarray) and value.ndim == 1 else value
        length = len(values) if isinstance(values, (tuple, list)) else 0
        if length == 0 or (count is not None and length != count):
            raise ValueError(f"{words} are needed")
        try:
            return tuple(item.convert(entry) for entry in values)
        except ValueError as err:
            raise ValueError(f"{words} are needed") from err

    def parse(text: str) -> tuple[Any, ...]:
        return tuple(item.parse(part) for part in text.split(","))

    return Kind(words, convert, parse, ",".join([item.metavar] * (count or 2)))


def optional(kind: Kind) -> Kind:
    """None, written ``none`` on the command line, or a value of ``kind``.

    >>> optional(integer(least=1)).parse("none") is None
    True
    """

    def convert(value: Any) -> Any:
        if value is None:
            return None
        try:
            return kind.convert(value)
        except ValueError as err:
            raise ValueError(f"{err}, or None") from err

    def parse(text: str) -> Any:
        return None if text.lower() == "none" else kind.parse(text)

    return Kind(f"{kind.words}, or None", convert, parse, kind.metavar)


def hint(name: Any, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` with up to three near names, or nothing.

    >>> hint("densty", ["density", "draws"])
    "; did you mean 'density'?"
    """
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6) if isinstance(name, str) else []
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
