"""``python -m lab pretrain``: the microworld's checkpoints again, from nothing."""

import argparse
import json

from diva_rs.errors import ConfigError

HELP = "make the microworld's checkpoints again, from nothing"
USAGE = "python -m lab pretrain --output-dir FOLDER [--seed N] [--clips N] [--quick]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("--output-dir", metavar="FOLDER", help="where to; one that is there goes on")
    parser.add_argument("--seed", metavar="N", default="0", help="of every start and every order [default 0]")
    parser.add_argument("--clips", metavar="N", default="1", help="CLIPs of different seeds [default 1]")
    parser.add_argument(
        "--quick", action="store_true", help="a few steps of each: to see that it works, not what it gains"
    )


def run(args: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    if args.output_dir is None:
        raise ConfigError("python -m lab pretrain needs --output-dir FOLDER")
    for name, value in (("--seed", args.seed), ("--clips", args.clips)):
        if not value.isdecimal() or (name == "--clips" and int(value) < 1):
            raise ConfigError(f"{name} {value}: a whole number is needed")
    from lab.pretraining.run import QUICK, Lengths, pretrain

    lengths = QUICK if args.quick else Lengths()
    manifest = pretrain(args.output_dir, lengths, int(args.seed), int(args.clips))
    print(json.dumps(manifest["validation"], indent=1))
    return 0
