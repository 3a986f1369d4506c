"""The evaluations that a report shows, before and after: result objects, or files of them."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diva_rs._base.files import as_path, read_json
from diva_rs.errors import ConfigError, DataError, a_type
from diva_rs.evaluation.decoded import decoded
from diva_rs.evaluation.detail import DetailResult
from diva_rs.evaluation.mmvp_vlm import MmvpVlmResult
from diva_rs.evaluation.scores import DriftResult, FolderResult, ProbeScore, SuiteResult


@dataclass(frozen=True)
class Side:
    """The evaluations of one model, at most one of each kind."""

    mmvp: MmvpVlmResult | None = None
    detail: dict[str, DetailResult] = field(default_factory=dict)  # by benchmark
    suites: dict[str, SuiteResult] = field(default_factory=dict)  # by task
    folder: FolderResult | None = None
    probes: dict[str, ProbeScore] = field(default_factory=dict)  # by kind of features
    drift: DriftResult | None = None

    @property
    def kinds(self) -> set[str]:
        """Of which kinds the evaluations are: "detail", "retention"."""
        found = (self.mmvp, *self.detail.values(), self.folder, *self.suites.values())
        return {result.kind for result in found if result is not None}


def gather(given: Any, side: str, measured: Iterable[Any] = ()) -> Side:
    """The evaluations of one model, ``side`` "before" or "after", that `write` was given.

    ``measured`` are results of the run itself, as dicts: those of a kind that was not given.
    """
    several = isinstance(given, Iterable) and not isinstance(given, (str, Mapping))
    found: dict[str, Any] = {"detail": {}, "suites": {}, "probes": {}}
    for result in _results(given if several else [] if given is None else [given], side):
        place, name = _place(found, result, side)
        if name in place:
            raise ConfigError(f"{side} holds two {name} results: give one of each kind")
        place[name] = result
    for content in measured:
        with suppress(DataError):  # of a run that diverged: the scores are not finite, as their table shows
            result = decoded(content, Path(f"evaluations-{side}.json"))
            place, name = _place(found, result, side)
            place.setdefault(name, result)
    return Side(**found)


def _place(found: dict[str, Any], result: Any, side: str) -> tuple[dict[str, Any], str]:
    """Where a result belongs among those of one side."""
    match result:
        case MmvpVlmResult():
            return found, "mmvp"
        case DetailResult():
            return found["detail"], result.name
        case FolderResult():
            return found, "folder"
        case DriftResult():
            return found, "drift"
        case SuiteResult():
            return found["suites"], result.task
        case ProbeScore():
            return found["probes"], result.features
    kind = a_type(result)
    raise ConfigError(f"{side} holds {kind}: give results of diva_rs.evaluation, or files of them")


def _results(entries: Iterable[Any], side: str) -> Iterator[Any]:
    for entry in entries:
        if isinstance(entry, (str, os.PathLike)):
            yield from results_in(as_path(entry), side)
        elif isinstance(entry, Mapping) and any(isinstance(value, ProbeScore) for value in entry.values()):
            yield from entry.values()
        else:
            yield entry


def results_in(file: Path, side: str = "before") -> Iterator[Any]:
    """The results in a file of ``to_json`` or of ``diva-rs eval --out``, or in a folder of them.

    Of a file about two models, those of one side.
    """
    if file.is_dir():
        for one in sorted(file.glob("*.json")):
            yield from results_in(one, side)
        return
    content = read_json(file)
    if isinstance(content, dict) and "clip" in content:  # of ``diva-rs eval --out``
        kept = content.get("retention") or {}
        yield from (decoded(part, file) for part in (kept.get(side, kept.get("scores")),) if part)
        content = content.get(side, content.get("scores"))
    # The results of one `linear_probe` are a mapping of them.
    parts = list(content.values()) if isinstance(content, dict) else []
    probes = parts and all(isinstance(part, dict) and "validation" in part for part in parts)
    for part in parts if probes else [content]:
        yield decoded(part, file)
