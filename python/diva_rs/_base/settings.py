"""Suggestions for misspelled names."""

import difflib
from collections.abc import Iterable
from typing import Any


def hint(name: Any, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` with up to three near names, or nothing.

    >>> hint("densty", ["density", "draws"])
    "; did you mean 'density'?"
    """
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6) if isinstance(name, str) else []
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
