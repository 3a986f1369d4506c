"""``diva-rs demo``: the main job, with figures, in two to four minutes on two cores."""

import argparse
from typing import Any

from diva_rs.errors import ConfigError

HELP = "post-train a tiny CLIP and see what it gains and loses; nothing is downloaded"
USAGE = "diva-rs demo [--output-dir FOLDER] [--steps N] [--world FOLDER] [--no-progress]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("--output-dir", metavar="FOLDER", help="run folder [default: a temporary one]")
    parser.add_argument("--steps", metavar="N", help="optimizer steps [default 450]")
    parser.add_argument(
        "--world",
        metavar="FOLDER",
        help="checkpoints of `python -m lab pretrain` [default: the package's]",
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
    from diva_rs.microworld import demo

    chosen: dict[str, Any] = {} if args.steps is None else {"steps": int(args.steps)}
    if args.world is not None:
        chosen["world"] = args.world
    result = demo.run(args.output_dir, progress=args.progress, **chosen).result
    return 130 if result.interrupted else 0
