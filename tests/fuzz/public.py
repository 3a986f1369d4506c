"""The target "public": good calls of the public API, one or two arguments of each replaced by hostile values.

A result or an exception of diva_rs, and never a panic of the native module. What an argument raises of its
own (`OwnError`) passes through unchanged.
"""

import contextlib
import importlib
import inspect
import io
import logging
import os
import random
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import diva_rs
from diva_rs.errors import DivaError
from fuzz import calls_of_files, calls_of_scores, calls_of_steps
from fuzz.values import OwnError, varied


def public_names() -> dict[str, str]:
    """Public function or class -> the module that a user has it from; exceptions are left out."""
    found: dict[str, str] = {}
    for place in ("diva_rs", *(f"diva_rs.{name}" for name in diva_rs._SUBMODULES)):
        module = importlib.import_module(place)
        for name in module.__all__:
            value = getattr(module, name)
            error = inspect.isclass(value) and issubclass(value, BaseException)
            if (inspect.isclass(value) or inspect.isfunction(value)) and not error:
                found.setdefault(name, place)
    return found


class Public:
    """Replaces arguments of one call per case."""

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.story = scratch, ""

    def warm_up(self) -> None:
        logging.disable(logging.CRITICAL)
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        torch.manual_seed(0)
        os.chdir(self.scratch)  # relative paths among the values lead here
        self.make_calls()
        for name, (function, arguments) in self.calls.items():
            try:
                with _silence():
                    function(**arguments)
            except Exception as err:
                raise RuntimeError(f"{name}: the good call fails") from err

    def make_calls(self) -> None:
        """The table of good calls; what they write goes to the scratch folder."""
        self.calls = {
            **calls_of_steps.calls(self.scratch),
            **calls_of_files.calls(self.scratch),
            **calls_of_scores.calls(self.scratch),
        }

    def run(self, rng: random.Random) -> str:
        name = rng.choice(list(self.calls))
        function, arguments = self.calls[name]
        given = dict(arguments)
        for _ in range(rng.choice([1, 1, 2])):
            key = rng.choice(list(given))
            given[key] = varied(given[key], rng)
        self.story = f"{name}({', '.join(f'{key}={_short(value)}' for key, value in given.items())})"
        try:
            with _silence():
                function(**given)
            return f"{name}: result"
        except DivaError as err:
            assert "please report it" not in str(err), f"a panic, {self.story}: {err}"
            assert type(err) is not DivaError, f"{self.story}: {err!r}: the root is for what nobody expected"
            assert 10 < len(str(err)) < 3000, f"{self.story}: a message of {len(str(err))} characters"
            return f"{name}: {type(err).__name__}"
        except OwnError:
            return f"{name}: the argument's own error"
        except BaseException as err:
            raise self._failure(err) from err

    def _failure(self, err: BaseException) -> AssertionError:
        lines = "".join(traceback.format_exception(err)[-7:])
        return AssertionError(f"{self.story}: {type(err).__name__}: {str(err)[:300]}\n{lines[-3000:]}")

    def keep(self, place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.with_suffix(".txt").write_text(self.story, errors="replace")


def target(scratch: Path) -> Public:
    return Public(scratch)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _short(value: Any) -> str:
    try:
        if isinstance(value, torch.Tensor):
            return f"{value.dtype} {tuple(value.shape)} {value.layout} {value.device}"
        text = repr(value)
    except BaseException:
        text = f"<{type(value).__name__}>"
    return text if len(text) < 150 else f"{text[:150]}..."
