"""Pairs of images of a table that differ in one attribute, or in as little else as possible."""

from collections.abc import Sequence
from typing import Any

import numpy as np

_MOST = 4096  # images of a split that pairs are looked for among


def nearest_pairs(
    codes: Any, column: int, most: int, empty: Sequence[int] = (), subject: int = 0
) -> list[tuple[int, int]]:
    """At most ``most`` pairs of rows with the same subject and another value in ``column``.

    Those that differ in the fewest other columns come first; no row is in two pairs.

    Args:
        codes: (N, columns) integers; the last columns may hold what is no attribute, such as the source.
        column: in which the two differ.
        empty: values of ``column`` that stand for "does not apply": such rows are in no pair.
        subject: the column of the subject.

    >>> nearest_pairs(np.array([[0, 0, 0], [0, 1, 1], [0, 1, 0], [1, 0, 0]]), 1, 9)
    [(0, 2)]
    """
    codes = codes[:_MOST]
    here = np.flatnonzero(~np.isin(codes[:, column], list(empty)))
    candidates = []
    for value in np.unique(codes[here, subject]):
        rows = here[codes[here, subject] == value]
        differs = codes[rows][:, None] != codes[rows][None]
        one, two = np.nonzero(np.triu(differs[..., column]))
        distance = differs.sum(-1)[one, two]
        candidates.append(np.stack([distance, rows[one], rows[two]], axis=1))
    if not candidates:
        return []
    listed = np.concatenate(candidates)
    chance = np.random.Generator(np.random.Philox(key=column)).permutation(len(listed))
    listed = listed[chance][np.argsort(listed[chance][:, 0], kind="stable")]
    taken: set[int] = set()
    found: list[tuple[int, int]] = []
    for _, first, second in listed.tolist():
        if len(found) < most and first not in taken and second not in taken:
            taken |= {first, second}
            found.append((first, second))
    return found
