"""``python -m lab ablate``: ablations on the microworld or another world, over several seeds."""

import argparse
from pathlib import Path

from lab.cli.numbers import count, seeds

HELP = "measure what a choice does to the tiny CLIP, over several seeds"
USAGE = "python -m lab ablate NAME --output-dir FOLDER [--seeds N] [--split NAME ...] [options]"
NAMES = (
    "captions",
    "caption-choices",
    "condition",
    "density",
    "data",
    "denoiser",
    "draws",
    "anchor",
    "lr",
    "projector_warmup",
    "length",
    "batch",
    "images-per-step",
    "timesteps",
    "class-tokens",
    "projector",
    "anchor-kind",
    "low-rank",
    "after",
    "method-choices",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("name", choices=NAMES, metavar="NAME", help=f"one of {', '.join(NAMES)}")
    add_settings(parser)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The flags that ``study`` has too."""
    parser.add_argument(
        "--output-dir", metavar="FOLDER", type=Path, required=True, help="for the results; an old run resumes"
    )
    parser.add_argument(
        "--seeds",
        metavar="N",
        type=seeds,
        default=range(5),
        help="seeds of each arm: how many, or the first and the last as 5-9 [default 5]",
    )
    parser.add_argument(
        "--split",
        metavar="NAME",
        nargs="+",
        default=["validation"],
        help="images of the scores: validation, test, or others of a table; several are scored in one run",
    )
    parser.add_argument(
        "--world",
        metavar="FOLDER",
        help="checkpoints of `python -m lab pretrain` [default: the package's]",
    )
    parser.add_argument("--steps", metavar="N", type=count, help="optimizer steps [default: the arm's]")
    parser.add_argument("--images", metavar="N", type=count, default=4096, help="training images [4096]")


def run(args: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from diva_rs.microworld.pretrained import SHIPPED
    from lab.study import ablate

    summary = ablate(
        args.name,
        args.output_dir,
        seeds=args.seeds,
        split=args.split,
        world=args.world or SHIPPED,
        steps=args.steps,
        images=args.images,
    )
    print(summary.table())
    print(summary.paragraph())
    return 0
