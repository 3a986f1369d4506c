"""Other libraries: optional imports, and errors that they raise."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from diva_rs.errors import DataError, DependencyError, DivaError


def require(module: str, extra: str | None = None) -> ModuleType:
    """Import ``module``, or raise DependencyError naming it, or the extra of diva-rs that has it."""
    try:
        return importlib.import_module(module)
    except ImportError as err:
        # A library that is there but broken must not be reported as missing.
        if err.name is not None and err.name.split(".")[0] != module.split(".")[0]:
            raise
        package = module if extra is None else f"'diva-rs[{extra}]'"
        raise DependencyError(f"{module} is needed here and not installed: pip install {package}") from err


def one_line(err: Exception) -> str:
    """One line of an error that may list every weight of a model."""
    text = " ".join(f"{type(err).__name__}: {err}".split())
    return text if len(text) <= 300 else text[:297] + "..."


@contextmanager
def library_errors(library: str, what: str) -> Iterator[None]:
    """Turn an error that a library raises on an input into a DataError that names the input."""
    try:
        yield
    except (DivaError, MemoryError):
        raise
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError, AssertionError) as err:
        if type(err).__name__ == "OutOfMemoryError" or "allocate memory" in str(err):
            raise
        line = (str(err).strip().splitlines() or [type(err).__name__])[0]
        raise DataError(f"{library} does not take {what}: {line[:200]}") from err
