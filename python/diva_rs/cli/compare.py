"""``diva-rs compare``: two models by their decisions on the same items."""

import argparse
from pathlib import Path
from typing import Any

from diva_rs._base.files import as_path
from diva_rs.cli.tables import NEEDED, comparison
from diva_rs.errors import DataError
from diva_rs.evaluation import Counted
from diva_rs.report.evidence import results_in

HELP = "compare the scores of two models: exact McNemar test, by category"
USAGE = "diva-rs compare BEFORE AFTER"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    for side in ("before", "after"):
        text = "a JSON file that diva-rs eval or to_json wrote, or the folder of a model in a suite's folder"
        parser.add_argument(side, metavar=side.upper(), help=text)


def run(args: argparse.Namespace) -> int:
    """Compare; returns the exit code."""
    sides = [
        _results(as_path(place), side) for place, side in ((args.before, "before"), (args.after, "after"))
    ]
    before, after = sides
    both = [name for name in before if name in after]
    if not both:
        raise DataError(
            f"{args.before} and {args.after} hold no score of the same name: {', '.join(before)} and "
            f"{', '.join(after)}"
        )
    for name in both:
        print(*comparison(before[name], after[name]), sep="\n")
    print(f"\n{NEEDED}")
    for name in before.keys() ^ after.keys():
        print(f"\n{name} is in {args.before if name in before else args.after} alone")
    return 0


def _results(place: Path, side: str) -> dict[str, Any]:
    """Name -> result."""
    found: dict[str, Any] = {}
    for result in results_in(place, side):
        if isinstance(result, Counted) and found.setdefault(result.name, result) != result:
            raise DataError(f"{place} holds two different results of {result.name}: give the file of one")
    if not found:
        raise DataError(f"{place} holds no scores that count items")
    return found
