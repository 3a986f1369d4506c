"""``python -m lab published-sizes``: run the slow tests at published size and record their figures."""

import argparse

HELP = "run the slow tests at published size and record their figures in benches/results"
USAGE = "python -m lab published-sizes [WORD ...]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("words", nargs="*", metavar="WORD", help="only tests whose names contain a WORD")


def run(args: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from lab.published_sizes import main

    return main(args.words)
