"""The exceptions of diva_rs: one root, and beneath it one class per kind of mistake.

Each also derives from the built-in exception that a caller would expect, so that ``except ValueError`` keeps
working.
"""

__all__ = [
    "ConfigError",
    "DataError",
    "DependencyError",
    "DeviceError",
    "DivaError",
    "RankError",
    "ShapeError",
    "WeightsError",
]


def shown(value: object, most: int = 60) -> str:
    """What a message shows of a value: its first ``most`` characters; whatever its own ``repr`` does.

    >>> shown("a"), shown(10**5000)
    ("'a'", '<int>')
    """
    try:
        text = repr(value)
    except Exception:  # whole numbers of more than 4300 digits, objects that cannot be shown
        text = f"<{type(value).__name__}>"
    return text if len(text) <= most else f"{text[:most]}..."


def a_type(value: object) -> str:
    """The type of a value with its article, for messages.

    >>> a_type(1), a_type("x"), a_type([])
    ('an int', 'a str', 'a list')
    """
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in tuple('aeiou') else 'a'} {name}"


class DivaError(Exception):
    """Root of everything that diva_rs raises on purpose."""


class ConfigError(DivaError, ValueError):
    """A setting is out of range, unknown, or does not fit another one."""


class ShapeError(DivaError, ValueError):
    """A tensor has the wrong rank, size or dtype."""


class WeightsError(DivaError, RuntimeError):
    """A weight or an optimizer state is missing, unexpected or misshapen."""


class DataError(DivaError, ValueError):
    """An image, a batch or a file cannot be used."""


class DeviceError(DivaError, RuntimeError):
    """A device is missing, out of memory, or not where the inputs are."""


class RankError(DivaError, RuntimeError):
    """Another rank of the run failed or was lost."""


class DependencyError(DivaError, ImportError):
    """An optional library is not installed; the message holds the pip command."""
