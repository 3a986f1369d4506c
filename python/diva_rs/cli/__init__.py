"""The command line, ``diva-rs``: train, eval, export, cache, report, info, bench, demo, ablate and
microworld.

One file per command; each adds its flags and its ``run``, which imports what is heavy. A mistake of the
caller is one line on standard error and exit code 2; Ctrl-C is exit code 130.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import diva_rs
from diva_rs.cli import ablate, bench, cache, demo, eval, export, info, microworld, report, train
from diva_rs.errors import ConfigError, DivaError
from diva_rs.recipes.kinds import hint

_COMMANDS = {
    "train": train,
    "eval": eval,
    "cache": cache,
    "export": export,
    "report": report,
    "info": info,
    "bench": bench,
    "demo": demo,
    "ablate": ablate,
    "microworld": microworld,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``diva-rs`` with the given arguments (None: those of the process); returns the exit code.

    >>> main(["info", "--recipe", "diva-openai"])  # says on standard error which recipes are near
    2
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except DivaError as err:
        if "--traceback" in arguments:
            raise
        print(f"diva-rs: error: {err}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("diva-rs: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `diva-rs info | head`: nobody reads on. Without this the interpreter complains at its last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


class _Parser(argparse.ArgumentParser):
    """Reports a mistake as a ConfigError: one line, without the long usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} ({self.prog} --help lists the options)")


def _run(arguments: list[str]) -> int:
    parser = _Parser(
        prog="diva-rs", description="Generative feedback that makes CLIP see better.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"diva-rs {diva_rs.__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    parsers: dict[str, argparse.ArgumentParser] = {}
    for name, command in _COMMANDS.items():
        parsers[name] = commands.add_parser(
            name, help=command.HELP, description=command.HELP, usage=command.USAGE, allow_abbrev=False
        )
        parsers[name].add_argument("--traceback", action="store_true", help="show where an error comes from")
        command.add_arguments(parsers[name])
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        flags = [] if args.command is None else parsers[args.command]._option_string_actions
        raise ConfigError(f"unknown argument {unknown[0]!r}{hint(unknown[0].split('=')[0], flags)}")
    if args.command is None:
        raise ConfigError(f"a command is needed: one of {', '.join(_COMMANDS)}")
    run: Any = _COMMANDS[args.command].run
    return int(run(args))
