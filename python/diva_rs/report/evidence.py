"""The evaluations that a report shows, before and after: given as result objects, or as the files of them."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diva_rs.errors import ConfigError, DataError
from diva_rs.evaluation.mmvp_result import MmvpVlmResult
from diva_rs.evaluation.scores import DriftResult, FolderResult, ProbeScore, SuiteResult
from diva_rs.report.decode import decode
from diva_rs.report.run import read_json

# What only one kind of result has in its JSON.
_MARKS: dict[str, Any] = {
    "benchmark": MmvpVlmResult,
    "task": SuiteResult,
    "predictions": FolderResult,
    "validation": ProbeScore,
    "cka": DriftResult,
}


@dataclass(frozen=True)
class Side:
    """The evaluations of one model, at most one of each kind."""

    mmvp: MmvpVlmResult | None = None
    suites: dict[str, SuiteResult] = field(default_factory=dict)  # by task
    folder: FolderResult | None = None
    probes: dict[str, ProbeScore] = field(default_factory=dict)  # by kind of features
    drift: DriftResult | None = None


def gather(given: Any, side: str) -> Side:
    """The evaluations of one model.

    Args:
        given: None, a result object of `diva_rs.evaluation` (or the dict of them that `linear_probe` gives),
            a file that ``to_json`` or ``diva-rs eval --out`` wrote, or several of these.
        side: "before" or "after", for errors, and for files that hold both.

    Raises:
        ConfigError: something that is neither, or two results of one kind.
        DataError: a file is damaged or holds no result; names it.

    >>> gather(None, "before") == Side()
    True
    """
    several = isinstance(given, Iterable) and not isinstance(given, (str, Mapping))
    entries = given if several else [] if given is None else [given]
    found: dict[str, Any] = {}
    for result in _results(entries, side):
        name = _name(result, side)
        if name in found:
            raise ConfigError(f"{side} holds two {name} results: give one of each kind")
        found[name] = result
    return Side(
        mmvp=found.get("mmvp"),
        suites={result.task: result for result in found.values() if isinstance(result, SuiteResult)},
        folder=found.get("folder"),
        probes={result.features: result for result in found.values() if isinstance(result, ProbeScore)},
        drift=found.get("drift"),
    )


def _results(entries: Iterable[Any], side: str) -> Iterator[Any]:
    for entry in entries:
        if isinstance(entry, (str, os.PathLike)):
            yield from read_results(entry, side)
        elif isinstance(entry, Mapping) and any(isinstance(value, ProbeScore) for value in entry.values()):
            yield from entry.values()
        else:
            yield entry


def read_results(path: str | os.PathLike[str], side: str = "after") -> list[Any]:
    """The result objects that a file holds; of a file with both sides, those of ``side``.

    Raises:
        DataError: it cannot be read, or holds no result; names it.

    >>> read_results("nowhere.json")
    Traceback (most recent call last):
    diva_rs.errors.DataError: nowhere.json cannot be read: No such file or directory
    """
    file = Path(path).expanduser()
    content = read_json(file)
    if isinstance(content, dict) and "clip" in content:  # of ``diva-rs eval --out``
        content = content.get(side, content.get("scores"))
    probes = isinstance(content, dict) and content and all(map(_is_probe, content.values()))
    parts = list(content.values()) if probes else [content]
    return [_checked(_decoded(part, file), file) for part in parts]


def _is_probe(content: Any) -> bool:
    return isinstance(content, dict) and "validation" in content


def _decoded(content: Any, file: Path) -> Any:
    for mark, kind in _MARKS.items():
        if isinstance(content, dict) and mark in content:
            return decode(kind, content, str(file))
    raise DataError(
        f"{file} holds no result of diva_rs.evaluation: give what its to_json or diva-rs eval wrote"
    )


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
    if isinstance(result, SuiteResult):
        return result.task
    if isinstance(result, ProbeScore):
        return f"{result.features} probe"
    raise ConfigError(
        f"{side} holds a {type(result).__name__}: give results of diva_rs.evaluation, or files of them"
    )
