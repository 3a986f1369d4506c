"""``python -m lab pretrain``: train the microworld's checkpoints from scratch."""

import argparse
import json

from lab.cli.numbers import count, seed

HELP = "train the microworld's checkpoints from scratch"
USAGE = "python -m lab pretrain --output-dir FOLDER [--seed N] [--clips N] [--quick]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument(
        "--output-dir", metavar="FOLDER", required=True, help="for the checkpoints; an old run resumes"
    )
    parser.add_argument("--seed", metavar="N", type=seed, default=0, help="of weights and orders [default 0]")
    parser.add_argument("--clips", metavar="N", type=count, default=1, help="number of CLIPs [default 1]")
    parser.add_argument("--quick", action="store_true", help="a few steps of each, to see that it works")


def run(args: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from lab.pretraining.run import QUICK, Lengths, pretrain

    lengths = QUICK if args.quick else Lengths()
    manifest = pretrain(args.output_dir, lengths, args.seed, args.clips)
    print(json.dumps(manifest["validation"], indent=1))
    return 0
