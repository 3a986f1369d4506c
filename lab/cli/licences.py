"""``python -m lab licences``: whether every dependency has a licence that suits this project's."""

import argparse

HELP = "check the licences of all crates and libraries"
USAGE = "python -m lab licences"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(args: argparse.Namespace) -> int:
    """Check; returns the exit code."""
    from lab.licences import check

    return check()
