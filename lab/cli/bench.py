"""``python -m lab bench``: the training step against plain PyTorch, on this machine."""

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from lab.cli.numbers import count

HELP = "measure the training step against plain PyTorch on this machine"
USAGE = "python -m lab bench [--all MINUTES] [--size NAME...] [--rows ROW...] [--output FOLDER]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument(
        "--all",
        metavar="MINUTES",
        type=count,
        help="all sizes, as much of them as so many minutes of two quiet cores allow (27 for everything)",
    )
    parser.add_argument(
        "--size",
        metavar="NAME",
        nargs="+",
        default=["microworld"],
        help="microworld, half, published (13 GiB, minutes) or tiny [default microworld]",
    )
    parser.add_argument("--precision", metavar="P", nargs="+", help="fp32, bf16 [default: the size's]")
    parser.add_argument(
        "--rows",
        metavar="ROW",
        nargs="+",
        help="step, peak, memory, growth, recap, launches, products, optimizer, draws, ranks "
        "[default: these], reader",
    )
    parser.add_argument("--rounds", metavar="N", type=count, default=5, help="rounds per comparison [5]")
    parser.add_argument("--output", metavar="FOLDER", help="folder of bench.jsonl and bench.md")
    parser.add_argument("--device", metavar="NAME", default="cpu", help="cpu, cuda, cuda:1 [default cpu]")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether torch.compile is tried for plain PyTorch, which takes minutes",
    )
    for name, text in _CUDA.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)


_CUDA = {
    "graph": "replay the steps of ours and of plain PyTorch from a CUDA graph",
    "channels-last": "give the frozen networks of all contestants channels-last weights",
    "tf32": "let float32 products on CUDA use TF32",
}


def _announce(text: str) -> None:
    print(f"python -m lab bench: {text} ...", file=sys.stderr, flush=True)


def run(args: argparse.Namespace) -> int:
    """Measure; returns the exit code."""
    from diva_rs.cli.models import pick_device
    from lab.benchmarks.overview import overview
    from lab.benchmarks.run import DEFAULT, Options, append
    from lab.benchmarks.run import run as measure
    from lab.benchmarks.sizes import find
    from lab.benchmarks.table import section

    options = Options(
        rounds=args.rounds,
        compile=args.compile,
        device=str(pick_device(args.device)),
        graph=args.graph,
        channels_last=args.channels_last,
        tf32=args.tf32,
    )
    records: Iterator[dict[str, Any]]
    if args.all is None:
        chosen = [(size, p) for size in map(find, args.size) for p in args.precision or size.precisions]
        rows = args.rows or DEFAULT
        records = (measure(size.name, precision, rows, options, _announce) for size, precision in chosen)
    else:
        records = overview(args.all, tell=_announce)
    for record in records:
        print(section(record), flush=True)
        if args.output is not None:
            print(f"\n{append(record, args.output)}")
    return 0
