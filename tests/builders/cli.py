"""The command line in tests: a tiny model by its name, what a mistake prints, and what flags mean."""

import argparse

from diva_rs.cli import main, train
from diva_rs.cli.options import TrainOptions, settings

MODEL = "diva-cli-tiny"
SCORED = "diva-scored-tiny"  # takes the texts of the benchmarks
CONFIG = {
    "embed_dim": 20,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}


def message(capsys, argv, main=main, code=2):
    assert main(argv) == code
    output = capsys.readouterr().err
    return next(line for line in output.splitlines() if ": error: " in line)


SCORED_CONFIG = {
    **CONFIG,
    "vision_cfg": {**CONFIG["vision_cfg"], "layers": 1},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}
NEEDED = ["--clip", MODEL, "--teacher", "t", "--data", "d", "--output-dir", "o"]


def parsed(argv):
    """The options and the recipe of ``diva-rs train``."""
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return settings(parser.parse_args(argv), TrainOptions)
