"""Results of this room from the JSON that their ``to_dict`` made."""

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from diva_rs.errors import DataError
from diva_rs.evaluation.detail import DetailResult
from diva_rs.evaluation.mmvp_vlm import MmvpVlmResult
from diva_rs.evaluation.scores import DriftResult, FolderResult, ProbeScore, SuiteResult

# A key that only this kind of result has in its JSON.
_KINDS: dict[str, Any] = {
    "benchmark": MmvpVlmResult,
    "rules": DetailResult,
    "task": SuiteResult,
    "predictions": FolderResult,
    "validation": ProbeScore,
    "cka": DriftResult,
}


def decoded(content: Any, file: Path) -> Any:
    """The result object, its fields checked strictly; computed values in the file are left out."""
    kinds = [kind for key, kind in _KINDS.items() if isinstance(content, dict) and key in content]
    if not kinds:
        raise DataError(
            f"{file} holds no result of diva_rs.evaluation: give what its to_json or diva-rs eval wrote"
        )
    try:
        text = json.dumps(_unpacked(content), allow_nan=False)
        result = TypeAdapter(kinds[0]).validate_json(text, strict=True)
    except ValidationError as err:
        first = err.errors()[0]
        raise DataError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from err
    except ValueError as err:
        raise DataError(f"{file}: {err}") from err
    if fault := _fault(result):
        raise DataError(f"{file}: {fault}")
    return result


def _unpacked(content: Any) -> Any:
    """The same with outcomes as lists, which `to_dict` writes as strings of 0 and 1."""
    if isinstance(content, list):
        return [_unpacked(part) for part in content]
    if not isinstance(content, dict):
        return content
    unpacked = {name: _unpacked(part) for name, part in content.items()}
    outcomes = content.get("outcomes")
    if isinstance(outcomes, str) and set(outcomes) <= {"0", "1"}:
        unpacked["outcomes"] = [letter == "1" for letter in outcomes]
    return unpacked


def _fault(result: Any) -> str:
    """Why the parts of the result do not fit each other; empty if they do."""
    if isinstance(result, MmvpVlmResult):
        for pair in result.pairs:
            decided = pair.picked == pair.expected and {*pair.picked, *pair.expected} <= {1, 2}
            if pair.correct != decided:
                return f"pair {pair.ids} contradicts itself: its picks give another result"
        if len({total for _, total in result.counts.values()}) != 1:
            return "the patterns differ in their number of pairs, or there is no pair"
    if isinstance(result, FolderResult) and not result.predictions:
        return "there is no prediction"
    if isinstance(result, DriftResult) and not result.cosines:
        return "there is no cosine"
    confidence = getattr(result, "confidence", 0.95)
    return "" if 0 < confidence < 1 else f"confidence is {confidence}, not inside (0, 1)"
