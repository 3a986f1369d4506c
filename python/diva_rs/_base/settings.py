"""Settings in messages: near names for one that is misspelled, and what differs between two sets."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


def hint(name: Any, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` with up to three near names, or nothing.

    >>> hint("densty", ["density", "draws"])
    "; did you mean 'density'?"
    """
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6) if isinstance(name, str) else []
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def differing(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each name whose values differ; one that only one of the two has is None in the other.

    >>> differing({"seed": 0, "draws": 2}, {"seed": 1, "draws": 2})
    ['seed was 0, is 1']
    """
    pairs = {name: (was.get(name), now.get(name)) for name in {**was, **now}}
    return [f"{name} was {old!r}, is {new!r}" for name, (old, new) in pairs.items() if old != new]
