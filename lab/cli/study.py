"""``python -m lab study``: the arms of the study or of the comparison of methods, over several seeds."""

import argparse

from lab.cli import ablate

HELP = "train every arm of the study over several seeds and measure what each changes"
USAGE = "python -m lab study --output-dir FOLDER [--arms NAME] [--seeds N] [--split NAME ...] [options]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument(
        "--arms",
        dest="name",
        choices=("study", "tokens", "methods"),
        default="study",
        help="the recipe's arms and controls, several tokens of the class token, or all published methods "
        "[default study]",
    )
    ablate.add_settings(parser)


def run(args: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    return ablate.run(args)
