"""``python -m lab study``: the arms of the study, over several seeds."""

import argparse

from lab.cli import ablate

HELP = "train every arm of the study over several seeds and measure what each changes"
USAGE = "python -m lab study --output-dir FOLDER [--seeds N] [--split NAME ...] [options]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    ablate.add_settings(parser)


def run(args: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    args.name = "study"
    return ablate.run(args)
