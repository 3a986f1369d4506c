"""The nightly run: `python -m fuzz files --cases 12000`."""

import argparse
import sys
import time
from pathlib import Path

from fuzz.engine import run

parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
parser.add_argument("target", choices=["files", "native"])
parser.add_argument("--cases", type=int, default=1000)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--start", type=int, default=0, help="number of the first case, to run one again")
parser.add_argument("--keep", type=Path, default=Path("../target/fuzz"), help="where failed inputs are saved")
args = parser.parse_args()

began = time.monotonic()
report = run(args.target, args.cases, args.seed, args.keep.absolute(), start=args.start)
print(f"{args.target}: {report}\n{time.monotonic() - began:.0f} s")
sys.exit(bool(report.failures) or report.cases != args.cases)
