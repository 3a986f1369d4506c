"""``diva-rs eval``: does it see better, and what did it lose?"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

import diva_rs.evaluation as evaluation
from diva_rs._base.files import make_folder, write_json
from diva_rs._base.settings import hint
from diva_rs.cli import suite
from diva_rs.cli.flags import Options, add_flags, given
from diva_rs.cli.models import TOKENIZER, Scored, check_data, load_other, load_scored, pick_device
from diva_rs.cli.options import CLIP, DEVICE
from diva_rs.cli.tables import NEEDED, comparison, retention_line
from diva_rs.errors import ConfigError
from diva_rs.evaluation.result import Result
from diva_rs.evaluation.zero_shot_folder import TEMPLATES
from diva_rs.recipes.settings import Count, Whole

HELP = "score a CLIP: benchmarks of fine detail, zero-shot classification, retrieval"
USAGE = (
    "diva-rs eval mmvp|pairs|captions|zero-shot|retrieval|suite --clip MODEL --data FOLDER "
    "[--compare WEIGHTS] [--retention FOLDER] [options]"
)


class EvalOptions(Options):
    """The flags."""

    clip: str = Field(description=f"{CLIP}; suite: also a pattern, MODEL:'runs/*/clip.safetensors'")
    data: str
    """mmvp, pairs, captions: the folder of the benchmark; suite: the folder of their folders; others: the
    folder of the data sets, or a template such as 'data/{dataset_cleaned}'; zero-shot without --datasets: an
    image folder with a folder per class"""
    compare: str | None = None
    """a second model, the one after: its run folder or .safetensors file, or what --clip takes"""
    retention: str | None = None
    """mmvp, pairs, captions, suite: an image folder with a folder per class, whose zero-shot accuracy is
    measured as well"""
    tokenizer: str | None = Field(default=None, description=TOKENIZER)
    out: str | None = None
    """where the scores are written as JSON and the decisions as CSV; suite: [diva-scores]"""
    device: str | None = Field(default=None, description=DEVICE)
    progress: bool = True
    """whether to show progress bars"""
    benchmark: str | None = None
    """pairs, captions: the format of the folder, where its files do not show it"""
    images: str | None = None
    """pairs, captions, suite: the folder of the images, where it is not beside the captions"""
    half: Literal["validation", "test"] | None = None
    """pairs, captions, suite: one of two fixed halves of the items, to choose models on the one and report
    the other"""
    embedding: str = "pooled"
    """mmvp, pairs, captions, suite: pooled, class, or of published scores: official-openai,
    official-metaclip, official-dfn-224, official-dfn-378, official-siglip"""
    seed: Whole = 0
    """of drawn tokens"""
    datasets: str | None = None
    """clip-benchmark's names: cifar10,wds/dtd,..."""
    suite: str | None = None
    """zero-shot, retrieval: diva, the paper's 27 data sets and 2 for retrieval"""
    split: str = "test"
    """zero-shot, retrieval: of each data set"""
    batch: Count = 64
    """images per batch"""
    workers: Whole = 2
    """zero-shot, retrieval: processes that read images"""
    recall: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 5, 10)
    """retrieval: k of recall@k"""
    webdataset: bool = False
    """whether the suite's sets are webdataset folders"""
    download: bool = False
    """whether clip-benchmark downloads what is missing"""
    template: tuple[str, ...] = TEMPLATES
    """zero-shot on an image folder, retention: text with {} for the class; repeatable"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("task", metavar="TASK", help=f"one of {', '.join([*_TASKS, 'suite'])}")
    add_flags(parser, EvalOptions)


def run(args: argparse.Namespace) -> int:
    """Score, print, write; returns the exit code."""
    task: str = args.task
    known = [*_TASKS, "suite"]
    if task not in known:
        raise ConfigError(f"eval {task}: one of {', '.join(known)} is needed{hint(task, known)}")
    options = EvalOptions(**given(vars(args), EvalOptions))
    foreign = options.model_fields_set - {*_COMMON, *_USED[task]}
    for name in (name for name in EvalOptions.model_fields if name in foreign):
        others = ", ".join(other for other in known if name in _USED[other])
        raise ConfigError(f"{options.label(name)} has no meaning for eval {task}: it goes with {others}")
    check_data(options.data)
    if options.retention is not None:
        check_data(options.retention, "--retention")
    evaluation.image_embedding(options.embedding)  # a mistyped name must not cost the loading of a model
    if task == "suite":
        return suite.run(options)
    score = _TASKS[task](options)
    device = pick_device(options.device)
    first = load_scored(options.clip, device, options.tokenizer)
    other = options.compare and load_other(options.compare, first, device, options.clip, options.tokenizer)
    before = score(*first)
    kept = _retention(options, first)
    print(before, *retention_line(before, kept), sep="\n")
    content: dict[str, Any] = {"clip": options.clip, "scores": before.to_dict()}
    content["retention"] = kept and {"scores": kept.to_dict()}
    tables = {task: before}
    if other:
        after = score(*other)
        changes = before.compare(after)
        changes = changes if isinstance(changes, dict) else {task: changes}
        print(f"\n{options.compare}\n{after}")
        kept_after = _retention(options, other)
        print(*retention_line(after, kept_after), "", *_lines(changes, before, after), sep="\n")
        parts = {
            name: change.to_dict() if isinstance(change, Result) else change
            for name, change in changes.items()
        }
        content = {"clip": options.clip, "before": before.to_dict(), "compared": options.compare}
        content |= {"after": after.to_dict(), "changes": parts, "retention": None}
        if kept and kept_after:
            print(kept.compare(kept_after))
            sides = {"before": kept, "after": kept_after, "change": kept.compare(kept_after)}
            content["retention"] = {name: result.to_dict() for name, result in sides.items()}
        tables = {f"{task}-before": before, f"{task}-after": after}
    if options.out is not None:
        folder = make_folder(options.out)
        write_json(folder / f"{task}.json", content)
        for name, result in tables.items():
            result.to_csv(folder / f"{name}.csv")
        print(f"\nwritten to {folder}")
    return 0


def _retention(options: EvalOptions, model: Scored) -> Any:
    """The zero-shot result beside a score of detail; None without --retention."""
    if options.retention is None:
        return None
    return evaluation.zero_shot_folder(
        *model, options.retention, templates=options.template, batch=options.batch
    )


def _mmvp(options: EvalOptions) -> Callable[..., Any]:
    return partial(evaluation.mmvp_vlm, root=options.data, **options.only("embedding", "seed", "progress"))


def _detail(score: Callable[..., Any], options: EvalOptions) -> Callable[..., Any]:
    used = ("benchmark", "images", "half", "embedding", "seed", "batch", "progress")
    return partial(score, root=options.data, **options.only(*used))


def _zero_shot(options: EvalOptions) -> Callable[..., Any]:
    if options.datasets is not None or options.suite is not None:
        return _datasets(evaluation.zero_shot, options)
    score = evaluation.zero_shot_folder
    return partial(score, root=options.data, templates=options.template, batch=options.batch)


def _datasets(score: Callable[..., Any], options: EvalOptions) -> Callable[..., Any]:
    names = [name.strip() for name in (options.datasets or "").split(",") if name.strip()]
    used = ("suite", "split", "batch", "workers", "webdataset", "download", "progress", "recall")
    settings = options.only(*used)
    sides = iter(["before", "after"] if options.compare else [""])

    def scored(*model: Any) -> Any:
        done = None if options.out is None else partial(_keep, make_folder(options.out), next(sides))
        return score(*model, root=options.data, datasets=names, done=done, **settings)

    return scored


def _keep(folder: Path, side: str, result: Any) -> None:
    """Write what is finished, so that an interrupted suite loses none of it."""
    name = f"{result.task}-{side}".removesuffix("-")
    write_json(folder / f"{name}.json", {"scores": result.to_dict()})
    result.to_csv(folder / f"{name}.csv")


_TASKS: dict[str, Callable[[EvalOptions], Callable[..., Any]]] = {
    "mmvp": _mmvp,
    "pairs": partial(_detail, evaluation.pairs),
    "captions": partial(_detail, evaluation.captions),
    "zero-shot": _zero_shot,
    "retrieval": partial(_datasets, evaluation.retrieval),
}


_COMMON = ("clip", "data", "compare", "tokenizer", "out", "device", "progress")
_DETAIL = ("retention", "template", "embedding", "seed", "batch")
_DATASETS = ("datasets", "suite", "split", "batch", "workers", "webdataset", "download")
# The other flags of each task: one that does not go with a task would be ignored without a word.
_USED: dict[str, tuple[str, ...]] = {
    "mmvp": _DETAIL,
    "pairs": (*_DETAIL, "benchmark", "images", "half"),
    "captions": (*_DETAIL, "benchmark", "images", "half"),
    "zero-shot": (*_DATASETS, "template"),
    "retrieval": (*_DATASETS, "recall"),
    "suite": (*_DETAIL, "images", "half"),
}


def _lines(changes: dict[str, Any], before: Any, after: Any) -> Iterator[str]:
    for name, change in changes.items():
        yield f"{name}: {change:+.1f} points" if isinstance(change, float) else str(change)
    if len(changes) > 1:
        old, new = (sum(result[name].value for name in changes) / len(changes) for result in (before, after))
        yield f"average of {len(changes)}: {old:.1f} -> {new:.1f} ({new - old:+.1f} points)"
    elif hasattr(before, "compare_categories"):
        yield from comparison(before, after)
        yield NEEDED
