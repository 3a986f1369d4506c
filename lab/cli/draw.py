"""``python -m lab draw``: draw another world as a folder of images with a table."""

import argparse

HELP = "draw another world: a folder of images with a table of attributes"
USAGE = "python -m lab draw --output-dir FOLDER"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("--output-dir", metavar="FOLDER", required=True, help="for the images and the table")


def run(args: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from lab.worlds.drawn import draw_world

    print(draw_world(args.output_dir))
    return 0
