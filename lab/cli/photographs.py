"""``python -m lab photographs``: the main job on real photographs, with models of random weights."""

import argparse

from lab.cli.numbers import count

HELP = "post-train a CLIP of random weights on photographs: shows the machinery and no gain"
USAGE = "python -m lab photographs [--output-dir FOLDER] [--steps N] [--no-progress]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("--output-dir", metavar="FOLDER", help="run folder [default: a temporary one]")
    parser.add_argument("--steps", metavar="N", type=count, default=60, help="optimizer steps [default 60]")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")


def run(args: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from lab import photographs

    result = photographs.run(args.output_dir, steps=args.steps, progress=not args.no_progress)
    return 130 if result.interrupted else 0
