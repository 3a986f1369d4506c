"""The report of a run: its parts put together, and its two files."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diva_rs._native as _native
from diva_rs._base.files import make_folder, write_text
from diva_rs.errors import ConfigError
from diva_rs.report import of_mmvp, of_recipe, of_run, of_scores, of_watch
from diva_rs.report.blocks import Document, Key
from diva_rs.report.change import Change
from diva_rs.report.evidence import Side, gather
from diva_rs.report.html import page
from diva_rs.report.markdown import markdown
from diva_rs.report.pictures import Pictures, pictures_sections
from diva_rs.report.run import Run, read_run

if TYPE_CHECKING:
    from diva_rs.run.result import PostTrainResult


def write(
    run: "PostTrainResult | str | os.PathLike[str]",
    folder: str | os.PathLike[str] | None = None,
    *,
    before: Any = None,
    after: Any = None,
    note: str = "",
    pictures: Pictures | None = None,
) -> Path:
    """Write report.html, one file that needs nothing else, and report.md with the same figures.

    The HTML page loads nothing from anywhere, works without JavaScript, and can be printed. What was not
    measured is said, with the code that measures it.

    Args:
        run: a `PostTrainResult`, or a run folder, also one whose run has not ended.
        folder: where to write; by default the run folder.
        before: evaluations of CLIP before post-training: result objects of `diva_rs.evaluation`, or files
            that ``to_json`` or ``diva-rs eval --out`` wrote; one, or a list with at most one of each kind.
        after: those of CLIP after it, and the drift.
        note: a sentence or two of yours for the head of the report: what the run was for.
        pictures: caption -> PNG file of yours, shown in a section of their own.

    Returns:
        The path of report.html.

    Raises:
        DataError: a file of the run or of an evaluation or a picture is missing or damaged (named),
            ``before`` and ``after`` were scored on different items, or the folder cannot be written to.
        ConfigError: something that is no run or no evaluation; no ``folder`` for a result; ``pictures``
            that are no mapping.

    >>> import tempfile
    >>> page = write(result, tempfile.mkdtemp())
    >>> sorted(file.name for file in page.parent.iterdir())
    ['report.html', 'report.md']
    """
    record = read_run(run)
    if folder is None:
        if not isinstance(run, (str, os.PathLike)):
            raise ConfigError("folder is missing: a PostTrainResult does not know where its report shall go")
        folder = run
    document = compose(record, gather(before, "before"), gather(after, "after"), note, pictures)
    place = make_folder(folder)
    write_text(place / "report.md", markdown(document))
    write_text(place / "report.html", page(document))
    return place / "report.html"


def compose(
    run: Run, before: Side, after: Side, note: str = "", pictures: Pictures | None = None
) -> Document:
    """The report, before it is HTML or Markdown.

    >>> [section.anchor for section in compose(read_run(result), Side(), Side()).sections][:3]
    ['trained', 'recipe', 'training']
    """
    keys = [*of_run.run_keys(run), *_score_keys(before, after)]
    sections = (
        of_run.trained_section(run),
        of_recipe.recipe_section(run.recipe),
        of_run.training_section(run),
        *of_watch.watch_sections(run),
        of_mmvp.patterns_section(before, after),
        of_mmvp.flips_section(before, after),
        *pictures_sections({} if pictures is None else pictures),
        of_scores.retention_section(before, after),
        of_scores.probes_section(before, after),
        of_scores.drift_section(after),
        of_run.throughput_section(run),
        of_run.environment_section(run),
        of_recipe.defaults_section(run.recipe),
    )
    title = f"Post-training report: {run.name}"
    footer = (
        f"Written by diva-rs {_native.__version__} from the run's own files; no figure was entered by hand."
    )
    return Document(title, of_run.lead(run), tuple(keys), sections, footer, note)


def _score_keys(before: Side, after: Side) -> list[Key]:
    keys = []
    mmvp = of_mmvp.mmvp_change(before, after)
    if mmvp is not None:
        keys.append(_key(mmvp))
    folder = of_scores.folder_change(before, after)
    if folder is not None:
        keys.append(_key(folder))
    if after.drift is not None:
        keys.append(of_scores.drift_key(after.drift))
    return keys


def _key(change: Change) -> Key:
    scores = [f"{score:.1f}" if score is not None else "?" for score in (change.before, change.after)]
    value = f"{scores[0]} → {scores[1]} %"
    return Key(change.label, value, change.sentence, {1: "better", -1: "worse", 0: "plain"}[change.shown])
