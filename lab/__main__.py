"""``python -m lab``: the laboratory's commands, one file each in `lab.cli`."""

import sys

from diva_rs.cli import run
from lab.cli import ablate, bench, photographs, pretrain, published_sizes, study

COMMANDS = {
    "bench": bench,
    "pretrain": pretrain,
    "study": study,
    "ablate": ablate,
    "photographs": photographs,
    "published-sizes": published_sizes,
}

if __name__ == "__main__":
    sys.exit(run("python -m lab", "Benchmarks, pretraining of the microworld, studies.", COMMANDS))
