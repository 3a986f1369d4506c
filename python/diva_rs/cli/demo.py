"""``diva-rs demo``: the main job, with figures, in two to four minutes on two cores."""

import argparse
from typing import Any

from diva_rs.errors import ConfigError

HELP = "post-train a tiny CLIP and see what it gains and loses; nothing is downloaded"
USAGE = "diva-rs demo [--output-dir FOLDER] [--steps N] [--world FOLDER | --photographs] [--no-progress]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("--output-dir", metavar="FOLDER", help="run folder [default: a temporary one]")
    parser.add_argument("--steps", metavar="N", help="optimizer steps [default 450; 60 with --photographs]")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--world",
        metavar="FOLDER",
        help="checkpoints of `diva-rs microworld pretrain` [default: the package's]",
    )
    which.add_argument(
        "--photographs",
        action="store_true",
        help="real photographs and models of random weights in place of the microworld",
    )
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether to show a progress bar",
    )


def run(args: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    if args.steps is not None and (not args.steps.isdecimal() or int(args.steps) < 1):
        raise ConfigError(f"--steps {args.steps}: an integer of at least 1 is needed")
    from diva_rs import demo

    chosen: dict[str, Any] = {} if args.steps is None else {"steps": int(args.steps)}
    if args.photographs:
        result = demo.photographs.run(args.output_dir, progress=args.progress, **chosen)
    else:
        folder: dict[str, Any] = {} if args.world is None else {"world": args.world}
        result = demo.run(args.output_dir, progress=args.progress, **chosen, **folder).result
    return 130 if result.interrupted else 0
