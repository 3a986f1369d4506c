"""``diva-rs demo``: the main job, with figures, in two to four minutes on two cores."""

import argparse

from diva_rs.cli.flags import Options, add_flags, given
from diva_rs.recipes.settings import Count

HELP = "post-train a tiny CLIP and see what it gains and loses; nothing is downloaded"
USAGE = "diva-rs demo [--output-dir FOLDER] [--steps N] [--world FOLDER] [--no-progress]"


class DemoOptions(Options):
    """The flags."""

    output_dir: str | None = None
    """run folder; none: a temporary one"""
    steps: Count = 450
    """optimizer steps"""
    world: str | None = None
    """checkpoints of `python -m lab pretrain`; none: the package's"""
    progress: bool = True
    """whether to show a progress bar"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    add_flags(parser, DemoOptions)


def run(args: argparse.Namespace) -> int:
    """Run it; returns the exit code."""
    from diva_rs.microworld import demo
    from diva_rs.microworld.pretrained import SHIPPED

    options = DemoOptions(**given(vars(args), DemoOptions))
    world = options.world or SHIPPED
    result = demo.run(options.output_dir, options.steps, options.progress, world).result
    return 130 if result.interrupted else 0
