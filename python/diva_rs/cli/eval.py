"""``diva-rs eval``: does it see better, and what did it lose?"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diva_rs._base.settings import hint
from diva_rs.cli.models import pick_device
from diva_rs.cli.scored import Scored, load_other, load_scored
from diva_rs.errors import ConfigError

HELP = "score a CLIP: MMVP-VLM, zero-shot classification, retrieval"
USAGE = "diva-rs eval mmvp|zero-shot|retrieval --clip MODEL --data FOLDER [--compare WEIGHTS] [options]"

_TASKS = ("mmvp", "zero-shot", "retrieval")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("task", metavar="TASK", help=f"one of {', '.join(_TASKS)}")
    parser.add_argument(
        "--clip",
        metavar="MODEL",
        help="open_clip MODEL[:PRETRAINED tag or file], hf-hub:..., or a transformers or open_clip folder",
    )
    parser.add_argument(
        "--compare",
        metavar="WEIGHTS",
        help="a second model, the one after: a run folder or .safetensors "
        "file of the same model, or anything that --clip takes",
    )
    parser.add_argument(
        "--data",
        metavar="FOLDER",
        help="mmvp: the folder with Questions.csv; others: the folder of the data sets, or a template as "
        "'data/{dataset_cleaned}'; zero-shot without --datasets: an image folder with a folder per class",
    )
    parser.add_argument("--out", metavar="FOLDER", help="where the scores are written as JSON and CSV")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, ...; by default CUDA where there is one")
    parser.add_argument(
        "--progress", action=argparse.BooleanOptionalAction, default=True, help="progress bars"
    )
    mmvp = parser.add_argument_group("mmvp")
    mmvp.add_argument(
        "--embedding",
        metavar="NAME",
        default="pooled",
        help="pooled, class, or what a published score was made of: official-openai, official-metaclip, "
        "official-dfn-224, official-dfn-378, official-siglip [default pooled]",
    )
    mmvp.add_argument("--seed", metavar="N", type=int, default=0, help="of drawn tokens [default 0]")
    sets = parser.add_argument_group("zero-shot and retrieval (clip-benchmark)")
    sets.add_argument("--datasets", metavar="A,B", help="names in clip-benchmark: cifar10,wds/dtd,...")
    sets.add_argument("--suite", metavar="NAME", help="diva: the paper's 27 data sets and 2 for retrieval")
    sets.add_argument("--split", metavar="NAME", default="test", help="[default test]")
    sets.add_argument("--batch", metavar="N", type=int, default=64, help="images at a time [default 64]")
    sets.add_argument("--workers", metavar="N", type=int, default=2, help="processes that read [default 2]")
    sets.add_argument("--recall", metavar="K,K", default="1,5,10", help="k of recall@k [default 1,5,10]")
    sets.add_argument("--webdataset", action="store_true", help="the suite's sets are webdataset folders")
    sets.add_argument("--download", action="store_true", help="let clip-benchmark download what is missing")
    sets.add_argument(
        "--template",
        metavar="TEXT",
        action="append",
        help="zero-shot on an image folder: text with {} for the class; may be repeated",
    )


def run(args: argparse.Namespace) -> int:
    """Score, print, write; returns the exit code."""
    if args.task not in _TASKS:
        raise ConfigError(f"eval {args.task}: one of {', '.join(_TASKS)} is needed{hint(args.task, _TASKS)}")
    for name in ("clip", "data"):
        if getattr(args, name) is None:
            raise ConfigError(f"eval needs --{name}: {USAGE}")
    if not any(mark in args.data for mark in ("{", "://")) and not os.path.isdir(args.data):
        raise ConfigError(f"--data {args.data}: there is no such folder")
    score = _scorer(args)
    device = pick_device(args.device)
    first = load_scored(args.clip, device)
    other = None if args.compare is None else load_other(args.compare, first, device, args.clip)
    before = score(first)
    print(before)
    after = None
    if other is not None:
        after = score(other)
        print(f"\n{args.compare}\n{after}\n\n{_change(before, after)}")
    if args.out is not None:
        print(f"\nwritten to {_write(Path(args.out), args, before, after)}")
    return 0


def _scorer(args: argparse.Namespace) -> Callable[[Scored], Any]:
    import diva_rs.evaluation as evaluation

    if args.task == "mmvp":
        evaluation.image_embedding(args.embedding)  # a mistyped name must not cost the loading of a model
        return lambda model: evaluation.mmvp_vlm(
            *model, args.data, args.embedding, args.seed, progress=args.progress
        )
    if args.task == "zero-shot" and args.datasets is None and args.suite is None:
        templates = {} if args.template is None else {"templates": args.template}
        return lambda model: evaluation.zero_shot_folder(*model, args.data, batch=args.batch, **templates)
    names = [name.strip() for name in (args.datasets or "").split(",") if name.strip()]
    settings = {
        name: getattr(args, name)
        for name in ("split", "batch", "workers", "webdataset", "download", "progress")
    }
    settings["recall"] = _numbers(args.recall)
    task = evaluation.zero_shot if args.task == "zero-shot" else evaluation.retrieval
    return lambda model: task(*model, args.data, names, args.suite, **settings)


def _change(before: Any, after: Any) -> str:
    changes = before.compare(after)
    if not isinstance(changes, dict):
        return str(changes)
    lines = []
    for name, change in changes.items():
        told = isinstance(change, float)
        lines.append(f"{name}: {change:+.1f} points" if told else str(change))
    if len(changes) > 1:
        old, new = (sum(result[name].value for name in changes) / len(changes) for result in (before, after))
        lines.append(f"average of {len(changes)}: {old:.1f} -> {new:.1f} ({new - old:+.1f} points)")
    return "\n".join(lines)


def _write(folder: Path, args: argparse.Namespace, before: Any, after: Any) -> Path:
    from diva_rs._base.files import make_folder, write_json

    make_folder(folder)
    content = {"clip": args.clip, "before" if after is not None else "scores": before.to_dict()}
    results = {args.task: before}
    if after is not None:
        changes = before.compare(after)
        told = changes if isinstance(changes, dict) else {args.task: changes}
        content |= {
            "compared": args.compare,
            "after": after.to_dict(),
            "changes": {name: getattr(c, "to_dict", lambda c=c: c)() for name, c in told.items()},
        }
        results = {f"{args.task}-before": before, f"{args.task}-after": after}
    write_json(folder / f"{args.task}.json", content)
    for name, result in results.items():
        result.to_csv(folder / f"{name}.csv")
    return folder


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as err:
        raise ConfigError(f"--recall {text}: whole numbers such as 1,5,10 are needed") from err
