"""``python -m lab torch-matrix``: build, install and try the package beside every supported torch."""

import argparse
from pathlib import Path

HELP = "build, install and try the package beside every supported torch; the table is in lab/results"
USAGE = "python -m lab torch-matrix [VERSION ...] [--python X.Y] [--beside REQUIREMENT ...] [--folder FOLDER]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument(
        "versions", nargs="*", metavar="VERSION", help="such as 2.15.0 [default: all supported]"
    )
    parser.add_argument("--python", metavar="X.Y", default="", help="the interpreter [default: this one]")
    parser.add_argument(
        "--beside",
        nargs="+",
        metavar="REQUIREMENT",
        default=[],
        help="of other libraries, such as 'transformers==4.57.*' [default: the newest that fit]",
    )
    parser.add_argument(
        "--folder",
        metavar="FOLDER",
        type=Path,
        default=Path("build/torch-matrix"),
        help="for the environments, about 10 GB each [default build/torch-matrix]",
    )


def run(args: argparse.Namespace) -> int:
    """Run it; returns the number of versions that failed."""
    from lab.torch_matrix import main

    return main(args.versions, args.folder, args.python, args.beside)
