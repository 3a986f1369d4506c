"""The command line, ``diva-rs``: one file per command, which adds its flags and runs.

A mistake in the arguments is one line on standard error and exit code 2; Ctrl-C is exit code 130.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import diva_rs._native as _native
from diva_rs._base.settings import hint
from diva_rs.cli import cache, compare, demo, eval, export, info, judge, report, train
from diva_rs.cli.flags import in_flags
from diva_rs.errors import ConfigError, DivaError

_COMMANDS = {
    "train": train,
    "eval": eval,
    "compare": compare,
    "cache": cache,
    "judge": judge,
    "export": export,
    "report": report,
    "info": info,
    "demo": demo,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``diva-rs`` with the given arguments (None: those of the process); returns the exit code.

    >>> main(["info", "--recipe", "diva-openai"])  # says on standard error which recipes are near
    2
    """
    return run("diva-rs", "Generative feedback that makes CLIP see better.", _COMMANDS, argv)


def run(prog: str, description: str, commands: Mapping[str, Any], argv: Sequence[str] | None = None) -> int:
    """Run the command that ``argv`` names (None: the process's arguments); returns the exit code.

    ``commands`` maps names to modules with ``HELP``, ``USAGE``, ``add_arguments(parser)`` and ``run(args)``.

    >>> run("tool", "A tool.", {}, ["unknown"])
    2
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(prog, description, commands, arguments)
        sys.stdout.flush()
        return code
    except DivaError as err:
        if "--traceback" in arguments:
            raise
        print(f"{prog}: error: {err}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `diva-rs info | head` closes the pipe; without this the interpreter's last flush fails.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


class _Parser(argparse.ArgumentParser):
    """Reports a mistake as a ConfigError: one line, without the long usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} ({self.prog} --help lists the options)")


def _run(prog: str, description: str, known: Mapping[str, Any], arguments: list[str]) -> int:
    parser = _Parser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"diva-rs {_native.__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    parsers: dict[str, argparse.ArgumentParser] = {}
    for name, command in known.items():
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
        near = hint(unknown[0].split("=")[0], parsers[args.command]._option_string_actions)
        raise ConfigError(f"unknown argument {unknown[0]!r}{near}")
    try:
        return int(known[args.command].run(args))
    except DivaError as err:
        err.args = (in_flags(str(err), parsers[args.command]._option_string_actions),)
        raise
