"""``diva-rs demo``: the main job on real photographs, in under three minutes on two cores."""

import argparse

from diva_rs.errors import ConfigError

HELP = "post-train a small CLIP on photographs that need no download"
USAGE = "diva-rs demo [--output-dir FOLDER] [--steps N] [--no-progress]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("--output-dir", metavar="FOLDER", help="run folder [default: a temporary one]")
    parser.add_argument("--steps", metavar="N", default="60", help="optimizer steps [default 60]")
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether to show a progress bar",
    )


def run(args: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    if not args.steps.isdecimal() or int(args.steps) < 1:
        raise ConfigError(f"--steps {args.steps}: an integer of at least 1 is needed")
    from diva_rs import demo

    result = demo.run(args.output_dir, steps=int(args.steps), progress=args.progress)
    return 130 if result.interrupted else 0
