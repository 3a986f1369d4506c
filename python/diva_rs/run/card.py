"""The model card of a run, and its upload to the Hugging Face Hub."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

import diva_rs._native as _native
from diva_rs._base.files import read_text, write_text
from diva_rs._base.hub import hub_reason
from diva_rs._base.optional import require
from diva_rs.errors import ConfigError, DataError
from diva_rs.evaluation.counted import Counted
from diva_rs.evaluation.decoded import decoded
from diva_rs.evaluation.scores import SuiteResult
from diva_rs.recipes.presets import presets
from diva_rs.recipes.recipe import Recipe

_TEMPLATE = Path(__file__).with_name("card.md")
Key = tuple[str, str]
_KINDS = {"detail", "retention"}


def check_repository(repo_id: str) -> None:
    """Raise ConfigError unless the Hub takes this name."""
    hub = require("huggingface_hub", extra="transformers")
    try:
        hub.utils.validate_repo_id(repo_id)
    except ValueError as err:
        raise ConfigError(f"repo_id {repo_id!r}: a name as owner/model is needed: {err}") from err


def base_of(clip: Any) -> str | None:
    """The repository on the Hub that a transformers model was loaded from, where it says one."""
    named = getattr(getattr(clip, "config", None), "_name_or_path", None)
    return named if named and not Path(named).exists() else None


def write_card(
    folder: Path,
    repo_id: str,
    recipe: Recipe,
    report: Mapping[str, Any],
    before: Mapping[Key, Any],
    after: Mapping[Key, Any],
    **metadata: Any,
) -> Path:
    """Write README.md: metadata for the Hub, how to load the model, the evidence and the recipe.

    ``report`` is that of a `PostTrainResult`, ``before`` and ``after`` are of `results_of`. ``metadata`` are
    fields of ``huggingface_hub.ModelCardData``, such as base_model, license and datasets.
    """
    hub = require("huggingface_hub", extra="transformers")
    data = hub.ModelCardData(
        **{name: value for name, value in metadata.items() if value is not None},
        library_name="diva-rs",
        pipeline_tag="zero-shot-image-classification",
        tags=["clip", "diva-rs", recipe.name],
        model_name=repo_id.rpartition("/")[2],
        eval_results=[
            hub.EvalResult("image-classification", name.lower(), name, "accuracy", round(one.per_cent, 2))
            for (_, name), one in after.items()
            if isinstance(one, Counted)
        ],
    )
    kinds = {
        kind: [line for key in after if after[key].kind == kind for line in _lines(key, before, after)]
        for kind in _KINDS
    }
    measured = report.get("evaluation") or {}
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(read_text(_TEMPLATE)).render(
        title=data.model_name,
        repo_id=repo_id,
        base_model=metadata.get("base_model"),
        recipe=recipe,
        preset=presets().get(recipe.name),
        clip=report.get("clip", "A CLIP"),
        version=_native.__version__,
        scores=list(_scores(measured)),
        chosen_on_test=measured.get("chosen_on_test"),
        training=list(_training(report)),
        **kinds,
    )
    file = folder / "README.md"
    write_text(file, str(hub.ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")))
    return file


def upload(folder: Path, repo_id: str, private: bool | None) -> str:
    """Upload a folder to a repository, which is created where there is none; returns its address."""
    hub = require("huggingface_hub", extra="transformers")
    api = hub.HfApi(library_name="diva-rs", library_version=_native.__version__)
    try:
        address = str(api.create_repo(repo_id, private=private, exist_ok=True))
        api.upload_folder(
            repo_id=repo_id, folder_path=str(folder), commit_message="Post-trained with diva-rs"
        )
    except (OSError, ValueError) as err:  # the Hub's errors are among them
        reason = hub_reason(err, repo_id)
        raise DataError(f"{repo_id} could not be written: {reason}") from err
    return address


def results_of(scores: Mapping[str, list[dict[str, Any]]], given: Iterable[Any]) -> dict[Key, Any]:
    """The results by class and name: those ``given``, and those of a run, without numbers that diverged."""
    found = {(type(result).__name__, result.name): result for result in given}
    for entry in (entry for entries in scores.values() for entry in entries):
        with suppress(DataError):
            result = decoded(entry["result"], Path("evaluations"))
            found.setdefault((type(result).__name__, result.name), result)
    return found


def _lines(key: Key, before: Mapping[Key, Any], after: Mapping[Key, Any]) -> Iterator[str]:
    """Counts and intervals of one result: of the change where there are two."""
    new = after[key]
    with suppress(DataError, KeyError):  # of other items, or not measured before
        changes = before[key].compare(new)
        for part, change in changes.items() if isinstance(changes, dict) else [("", changes)]:
            yield f"{part}: {change:+.1f} points" if isinstance(change, float) else str(change)
        return
    yield from (one.line for one in (new.scores if isinstance(new, SuiteResult) else (new,)))


def _scores(measured: Mapping[str, Any]) -> Iterator[str]:
    """The scores that are neither of detail nor of retention."""
    old, new, known = measured.get("before", {}), measured.get("after", {}), measured.get("of", {})
    for name in new:
        if name != "step" and not _KINDS & {entry["kind"] for entry in known.get(name, ())}:
            yield f"{name}: {old.get(name, math.nan):.4g} before, {new[name]:.4g} after"


def _training(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"{report.get('steps', 0):,} steps, {report.get('samples', 0):,} images"
    if report.get("interrupted"):
        yield "the run was interrupted before its last step"
    lines = [f"{name}: {report[name]}" for name in ("data", "device", "torch", "stopped") if report.get(name)]
    for line in (*lines, *str(report.get("teacher", "")).splitlines()):
        yield line.replace(str(Path.home()), "~")  # the home folder holds the user's name
