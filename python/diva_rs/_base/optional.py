"""Optional libraries: imported where they are used, with the pip command when they are missing."""

import importlib
from types import ModuleType

from diva_rs.errors import DependencyError


def require(module: str, extra: str) -> ModuleType:
    """Import ``module``, or raise DependencyError naming the extra of diva-rs that installs it.

    >>> require("json", extra="all").__name__
    'json'
    """
    try:
        return importlib.import_module(module)
    except ImportError as err:
        # A library that is there but broken must not be reported as missing.
        if err.name is not None and err.name.split(".")[0] != module.split(".")[0]:
            raise
        raise DependencyError(
            f"{module} is needed here and not installed: pip install 'diva-rs[{extra}]'"
        ) from err


def one_line(err: Exception) -> str:
    """One line of an error that may list every weight of a model.

    >>> one_line(ValueError("two\\n  lines"))
    'ValueError: two lines'
    """
    text = " ".join(f"{type(err).__name__}: {err}".split())
    return text if len(text) <= 300 else text[:297] + "..."
