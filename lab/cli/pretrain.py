"""``python -m lab pretrain``: train a world's checkpoints from scratch."""

import argparse
import json
from dataclasses import replace

from diva_rs.errors import ConfigError
from lab.cli.numbers import count, seed

HELP = "train a world's checkpoints from scratch"
USAGE = "python -m lab pretrain --output-dir FOLDER [--world FOLDER|TABLE.csv] [options]"

_PARTS = ("text", "objects", "clip", "vae", "unet", "dit")  # of `Lengths`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument(
        "--output-dir", metavar="FOLDER", required=True, help="for the checkpoints; an old run resumes"
    )
    parser.add_argument("--seed", metavar="N", type=seed, default=0, help="of weights and orders [default 0]")
    parser.add_argument("--clips", metavar="N", type=count, default=1, help="number of CLIPs [default 1]")
    parser.add_argument(
        "--world", metavar="TABLE", help="images with a table of attributes [default: the microworld]"
    )
    parser.add_argument("--side", metavar="N", type=count, default=48, help="pixels of a table's images [48]")
    parser.add_argument("--patch", metavar="N", type=count, default=12, help="pixels of CLIP's patches [12]")
    parser.add_argument(
        "--steps", metavar="PART=N", nargs="+", default=[], help=f"other lengths: {', '.join(_PARTS)}"
    )
    parser.add_argument("--quick", action="store_true", help="a few steps of each, to see that it works")


def run(args: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from lab.pretraining.run import QUICK, Lengths, pretrain
    from lab.worlds import Table

    lengths = replace(QUICK if args.quick else Lengths(), **dict(map(_steps, args.steps)))
    data = None if args.world is None else Table(args.world, args.side)
    manifest = pretrain(args.output_dir, lengths, args.seed, args.clips, data, args.patch)
    print(json.dumps(manifest["validation"], indent=1))
    return 0


def _steps(text: str) -> tuple[str, int]:
    part, _, number = text.partition("=")
    if part not in _PARTS or not number.isdecimal():
        raise ConfigError(f"--steps {text}: PART=N with one of {', '.join(_PARTS)} is needed")
    return part, int(number)
