"""``diva-rs report``: one page about a run, as HTML."""

import argparse

HELP = "write report.html of a run"
USAGE = "diva-rs report RUN [--before FILE...] [--after FILE...] [--note TEXT] [--output-dir FOLDER]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("run", metavar="RUN", help="run folder: the --output-dir of diva-rs train")
    for side in ("before", "after"):
        parser.add_argument(
            f"--{side}",
            metavar="FILE",
            nargs="+",
            default=[],
            help=f"evaluations of CLIP {side} post-training: what diva-rs eval, or to_json, wrote",
        )
    parser.add_argument("--note", metavar="TEXT", default="", help="a sentence for the head of the report")
    parser.add_argument("--output-dir", metavar="FOLDER", help="where to write [default: RUN]")


def run(args: argparse.Namespace) -> int:
    """Write it; returns the exit code."""
    import diva_rs.report as report

    print(report.write(args.run, args.output_dir, before=args.before, after=args.after, note=args.note))
    return 0
