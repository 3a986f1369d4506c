"""The laboratory's commands, one file each."""

from collections.abc import Sequence

from diva_rs.cli import run
from lab.cli import (
    ablate,
    bench,
    draw,
    licences,
    photographs,
    pretrain,
    published_sizes,
    sheet,
    study,
    torch_matrix,
)

_COMMANDS = {
    "bench": bench,
    "draw": draw,
    "pretrain": pretrain,
    "sheet": sheet,
    "study": study,
    "ablate": ablate,
    "photographs": photographs,
    "published-sizes": published_sizes,
    "torch-matrix": torch_matrix,
    "licences": licences,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m lab`` with the given arguments (None: those of the process); returns the exit code."""
    return run("python -m lab", "Benchmarks, pretraining of the microworld, studies.", _COMMANDS, argv)
