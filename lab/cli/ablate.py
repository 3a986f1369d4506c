"""``python -m lab ablate``: the paper's ablations, and a user's, on the microworld."""

import argparse
from pathlib import Path

from diva_rs.errors import ConfigError

HELP = "measure what a choice does to the tiny CLIP, over several seeds"
USAGE = "python -m lab ablate NAME --output-dir FOLDER [--seeds N] [--split validation|test] [options]"
NAMES = ("condition", "density", "data", "denoiser", "draws", "anchor", "lr", "projector_warmup")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("name", choices=NAMES, metavar="NAME", help=f"one of {', '.join(NAMES)}")
    add_settings(parser)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The flags that a study has as well."""
    parser.add_argument("--output-dir", metavar="FOLDER", help="where to; one that is there goes on")
    parser.add_argument("--seeds", metavar="N", default="5", help="seeds of each arm [default 5]")
    parser.add_argument(
        "--split", choices=["validation", "test"], default="validation", help="what is measured on"
    )
    parser.add_argument(
        "--world",
        metavar="FOLDER",
        help="checkpoints of `python -m lab pretrain` [default: the package's]",
    )
    parser.add_argument("--steps", metavar="N", help="optimizer steps [default: the arms' own]")
    parser.add_argument("--images", metavar="N", default="4096", help="training images [default 4096]")


def run(args: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    if args.output_dir is None:
        raise ConfigError("--output-dir FOLDER is needed")
    for name, value in (("--seeds", args.seeds), ("--steps", args.steps or "1"), ("--images", args.images)):
        if not value.isdecimal() or int(value) < 1:
            raise ConfigError(f"{name} {value}: an integer of at least 1 is needed")
    from diva_rs.microworld.pretrained import SHIPPED
    from lab.study import ablate

    summary = ablate(
        args.name,
        Path(args.output_dir),
        seeds=int(args.seeds),
        split=args.split,
        world=args.world or SHIPPED,
        steps=int(args.steps) if args.steps else None,
        images=int(args.images),
    )
    print(summary.table())
    print(summary.paragraph())
    return 0
