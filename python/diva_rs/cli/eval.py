"""``diva-rs eval``: does it see better, and what did it lose?"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Any

from pydantic import Field

import diva_rs.evaluation as evaluation
from diva_rs._base.files import make_folder, write_json
from diva_rs._base.settings import hint
from diva_rs.cli.flags import Options, add_flags, given
from diva_rs.cli.models import TOKENIZER, check_data, load_other, load_scored, pick_device
from diva_rs.cli.options import CLIP, DEVICE
from diva_rs.errors import ConfigError
from diva_rs.evaluation.result import Result
from diva_rs.evaluation.zero_shot_folder import TEMPLATES
from diva_rs.recipes.settings import Count, Whole

HELP = "score a CLIP: MMVP-VLM, zero-shot classification, retrieval"
USAGE = "diva-rs eval mmvp|zero-shot|retrieval --clip MODEL --data FOLDER [--compare WEIGHTS] [options]"


class EvalOptions(Options):
    """The flags."""

    clip: str = Field(description=CLIP)
    data: str
    """mmvp: the folder with Questions.csv; others: the folder of the data sets, or a template such as
    'data/{dataset_cleaned}'; zero-shot without --datasets: an image folder with a folder per class"""
    compare: str | None = None
    """a second model, the one after: its run folder or .safetensors file, or what --clip takes"""
    tokenizer: str | None = Field(default=None, description=TOKENIZER)
    out: str | None = None
    """where the scores are written as JSON and CSV"""
    device: str | None = Field(default=None, description=DEVICE)
    progress: bool = True
    """whether to show progress bars"""
    embedding: str = "pooled"
    """mmvp: pooled, class, or of published scores: official-openai, official-metaclip, official-dfn-224,
    official-dfn-378, official-siglip"""
    seed: Whole = 0
    """mmvp: of drawn tokens"""
    datasets: str | None = None
    """clip-benchmark's names: cifar10,wds/dtd,..."""
    suite: str | None = None
    """diva: the paper's 27 data sets and 2 for retrieval"""
    split: str = "test"
    """of each data set"""
    batch: Count = 64
    """images per batch"""
    workers: Whole = 2
    """processes that read images"""
    recall: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 5, 10)
    """retrieval: k of recall@k"""
    webdataset: bool = False
    """whether the suite's sets are webdataset folders"""
    download: bool = False
    """whether clip-benchmark downloads what is missing"""
    template: tuple[str, ...] = TEMPLATES
    """zero-shot on an image folder: text with {} for the class; repeatable"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("task", metavar="TASK", help=f"one of {', '.join(_TASKS)}")
    add_flags(parser, EvalOptions)


def run(args: argparse.Namespace) -> int:
    """Score, print, write; returns the exit code."""
    task: str = args.task
    if task not in _TASKS:
        raise ConfigError(f"eval {task}: one of {', '.join(_TASKS)} is needed{hint(task, _TASKS)}")
    options = EvalOptions(**given(vars(args), EvalOptions))
    check_data(options.data)
    score = _TASKS[task](options)
    device = pick_device(options.device)
    first = load_scored(options.clip, device, options.tokenizer)
    other = (
        None
        if options.compare is None
        else load_other(options.compare, first, device, options.clip, options.tokenizer)
    )
    before = score(*first)
    print(before)
    content: dict[str, Any] = {"clip": options.clip, "scores": before.to_dict()}
    tables = {task: before}
    if other is not None:
        after = score(*other)
        changes = before.compare(after)
        changes = changes if isinstance(changes, dict) else {task: changes}
        print(f"\n{options.compare}\n{after}\n", *_lines(changes, before, after), sep="\n")
        parts = {
            name: change.to_dict() if isinstance(change, Result) else change
            for name, change in changes.items()
        }
        content = {"clip": options.clip, "before": before.to_dict(), "compared": options.compare}
        content |= {"after": after.to_dict(), "changes": parts}
        tables = {f"{task}-before": before, f"{task}-after": after}
    if options.out is not None:
        folder = make_folder(options.out)
        write_json(folder / f"{task}.json", content)
        for name, result in tables.items():
            result.to_csv(folder / f"{name}.csv")
        print(f"\nwritten to {folder}")
    return 0


def _mmvp(options: EvalOptions) -> Callable[..., Any]:
    evaluation.image_embedding(options.embedding)  # a mistyped name must not cost the loading of a model
    settings = {name: getattr(options, name) for name in ("embedding", "seed", "progress")}
    return partial(evaluation.mmvp_vlm, root=options.data, **settings)


def _zero_shot(options: EvalOptions) -> Callable[..., Any]:
    if options.datasets is not None or options.suite is not None:
        return _datasets(evaluation.zero_shot, options)
    score = evaluation.zero_shot_folder
    return partial(score, root=options.data, templates=options.template, batch=options.batch)


def _datasets(score: Callable[..., Any], options: EvalOptions) -> Callable[..., Any]:
    names = [name.strip() for name in (options.datasets or "").split(",") if name.strip()]
    used = ("suite", "split", "batch", "workers", "webdataset", "download", "progress", "recall")
    return partial(
        score, root=options.data, datasets=names, **{name: getattr(options, name) for name in used}
    )


_TASKS: dict[str, Callable[[EvalOptions], Callable[..., Any]]] = {
    "mmvp": _mmvp,
    "zero-shot": _zero_shot,
    "retrieval": partial(_datasets, evaluation.retrieval),
}


def _lines(changes: dict[str, Any], before: Any, after: Any) -> Iterator[str]:
    for name, change in changes.items():
        yield f"{name}: {change:+.1f} points" if isinstance(change, float) else str(change)
    if len(changes) > 1:
        old, new = (sum(result[name].value for name in changes) / len(changes) for result in (before, after))
        yield f"average of {len(changes)}: {old:.1f} -> {new:.1f} ({new - old:+.1f} points)"
