"""The evaluations that a report shows, before and after: given as result objects, or as the files of them."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diva_rs.errors import ConfigError, DataError
from diva_rs.evaluation.mmvp_result import MmvpVlmResult
from diva_rs.evaluation.report.decode import decode
from diva_rs.evaluation.report.run import read_json
from diva_rs.evaluation.scores import DriftResult, FolderResult, SuiteResult

# What only one kind of result has in its JSON.
_MARKS: dict[str, Any] = {
    "benchmark": MmvpVlmResult,
    "task": SuiteResult,
    "predictions": FolderResult,
    "cka": DriftResult,
}


@dataclass(frozen=True)
class Side:
    """The evaluations of one model, at most one of each kind."""

    mmvp: MmvpVlmResult | None = None
    suites: dict[str, SuiteResult] = field(default_factory=dict)  # by task
    folder: FolderResult | None = None
    drift: DriftResult | None = None


def gather(given: Any, side: str) -> Side:
    """The evaluations of one model.

    Args:
        given: None, a result object of `diva_rs.evaluation`, a file that its ``to_json`` wrote, or several.
        side: "before" or "after", for errors.

    Raises:
        ConfigError: something that is neither, or two results of one kind.
        DataError: a file is damaged or holds no result; names it.

    >>> gather(None, "before")
    Side(mmvp=None, suites={}, folder=None, drift=None)
    """
    if given is None:
        return Side()
    several = isinstance(given, Iterable) and not isinstance(given, str)
    found: dict[str, Any] = {}
    suites: dict[str, SuiteResult] = {}
    for entry in given if several else [given]:
        result = read_result(entry) if isinstance(entry, (str, os.PathLike)) else entry
        if isinstance(result, SuiteResult):
            name, place = result.task, suites
        else:
            name, place = _name(result, side), found
        if name in place:
            raise ConfigError(f"{side} holds two {name} results: give one of each kind")
        place[name] = result
    return Side(suites=suites, **found)


def read_result(path: str | os.PathLike[str]) -> Any:
    """The result object that a file holds. Raises DataError, naming the file, where it holds none.

    >>> read_result("nowhere.json")
    Traceback (most recent call last):
    diva_rs.errors.DataError: nowhere.json cannot be read: No such file or directory
    """
    file = Path(path).expanduser()
    content = read_json(file)
    for mark, kind in _MARKS.items():
        if isinstance(content, dict) and mark in content:
            return _checked(decode(kind, content, str(file)), file)
    raise DataError(f"{file} holds no result of diva_rs.evaluation: give what its to_json wrote")


def _checked(result: Any, file: Path) -> Any:
    """What types alone do not say: whether the parts of a result fit each other."""
    if isinstance(result, MmvpVlmResult):
        for pair in result.pairs:
            decided = pair.picked == pair.expected and {*pair.picked, *pair.expected} <= {1, 2}
            if pair.correct != decided:
                raise DataError(f"{file}: pair {pair.ids} contradicts itself: its picks give another result")
        if len({total for _, total in result.counts.values()}) != 1:
            raise DataError(f"{file}: the patterns differ in their number of pairs, or there is none")
    if isinstance(result, FolderResult) and not result.predictions:
        raise DataError(f"{file} holds no prediction")
    if isinstance(result, DriftResult) and not result.cosines:
        raise DataError(f"{file} holds no cosine")
    confidence = getattr(result, "confidence", 0.95)
    if not 0 < confidence < 1:
        raise DataError(f"{file}: confidence is {confidence}, not inside (0, 1)")
    return result


def _name(result: Any, side: str) -> str:
    for kind, name in ((MmvpVlmResult, "mmvp"), (FolderResult, "folder"), (DriftResult, "drift")):
        if isinstance(result, kind):
            return name
    raise ConfigError(
        f"{side} holds a {type(result).__name__}: give results of diva_rs.evaluation, or files of them"
    )
