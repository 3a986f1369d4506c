"""``diva-rs eval``: does it see better, and what did it lose?"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from diva_rs._base.settings import hint
from diva_rs.cli.flags import Options, add_flags, given
from diva_rs.cli.models import Scored, load_other, load_scored, pick_device
from diva_rs.cli.options import CLIP, DEVICE
from diva_rs.errors import ConfigError
from diva_rs.recipes.settings import Count, Whole

HELP = "score a CLIP: MMVP-VLM, zero-shot classification, retrieval"
USAGE = "diva-rs eval mmvp|zero-shot|retrieval --clip MODEL --data FOLDER [--compare WEIGHTS] [options]"


class EvalOptions(Options):
    """The flags."""

    noun: ClassVar[str] = "eval"

    clip: str = Field(description=CLIP)
    data: str
    """mmvp: the folder with Questions.csv; others: the folder of the data sets, or a template as
    'data/{dataset_cleaned}'; zero-shot without --datasets: an image folder with a folder per
    class"""
    compare: str | None = None
    """a second model, the one after: a run folder or .safetensors file of the same model, or
    anything that --clip takes"""
    out: str | None = None
    """where the scores are written as JSON and CSV"""
    device: str | None = Field(default=None, description=DEVICE)
    progress: bool = True
    """whether to show progress bars"""
    embedding: str = "pooled"
    """mmvp: pooled, class, or what a published score was computed from: official-openai, official-
    metaclip, official-dfn-224, official-dfn-378, official-siglip"""
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
    template: tuple[str, ...] = ()
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
    options = EvalOptions(**given(args, EvalOptions))
    if not any(mark in options.data for mark in ("{", "://")) and not os.path.isdir(options.data):
        raise ConfigError(f"--data {options.data}: there is no such folder")
    score = _TASKS[task](options)
    device = pick_device(options.device)
    first = load_scored(options.clip, device)
    other = None if options.compare is None else load_other(options.compare, first, device, options.clip)
    before = score(first)
    print(before)
    after = None
    if other is not None:
        after = score(other)
        print(f"\n{options.compare}\n{after}\n\n{_change(before, after)}")
    if options.out is not None:
        print(f"\nwritten to {_write(Path(options.out), task, options, before, after)}")
    return 0


def _mmvp(options: EvalOptions) -> Callable[[Scored], Any]:
    import diva_rs.evaluation as evaluation

    evaluation.image_embedding(options.embedding)  # a mistyped name must not cost the loading of a model
    chosen = (options.data, options.embedding, options.seed)
    return lambda model: evaluation.mmvp_vlm(*model, *chosen, progress=options.progress)


def _zero_shot(options: EvalOptions) -> Callable[[Scored], Any]:
    import diva_rs.evaluation as evaluation

    if options.datasets is not None or options.suite is not None:
        return _datasets(evaluation.zero_shot, options)
    templates: dict[str, Any] = {"templates": options.template} if options.template else {}
    return lambda model: evaluation.zero_shot_folder(*model, options.data, batch=options.batch, **templates)


def _retrieval(options: EvalOptions) -> Callable[[Scored], Any]:
    import diva_rs.evaluation as evaluation

    return _datasets(evaluation.retrieval, options)


def _datasets(score: Callable[..., Any], options: EvalOptions) -> Callable[[Scored], Any]:
    names = [name.strip() for name in (options.datasets or "").split(",") if name.strip()]
    used = ("split", "batch", "workers", "webdataset", "download", "progress", "recall")
    settings = {name: getattr(options, name) for name in used}
    return lambda model: score(*model, options.data, names, options.suite, **settings)


_TASKS = {"mmvp": _mmvp, "zero-shot": _zero_shot, "retrieval": _retrieval}


def _change(before: Any, after: Any) -> str:
    changes = before.compare(after)
    if not isinstance(changes, dict):
        return str(changes)
    lines = [
        f"{name}: {change:+.1f} points" if isinstance(change, float) else str(change)
        for name, change in changes.items()
    ]
    if len(changes) > 1:
        old, new = (sum(result[name].value for name in changes) / len(changes) for result in (before, after))
        lines.append(f"average of {len(changes)}: {old:.1f} -> {new:.1f} ({new - old:+.1f} points)")
    return "\n".join(lines)


def _write(folder: Path, task: str, options: EvalOptions, before: Any, after: Any) -> Path:
    from diva_rs._base.files import make_folder, write_json

    make_folder(folder)
    content = {"clip": options.clip, "scores" if after is None else "before": before.to_dict()}
    results = {task: before}
    if after is not None:
        changes = before.compare(after)
        named = changes if isinstance(changes, dict) else {task: changes}
        content |= {
            "compared": options.compare,
            "after": after.to_dict(),
            "changes": {name: getattr(c, "to_dict", lambda c=c: c)() for name, c in named.items()},
        }
        results = {f"{task}-before": before, f"{task}-after": after}
    write_json(folder / f"{task}.json", content)
    for name, result in results.items():
        result.to_csv(folder / f"{name}.csv")
    return folder
