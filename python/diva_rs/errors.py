"""The exceptions of diva_rs: a base class, and one class for each kind of error.

Each also derives from the built-in exception that a caller would expect, such as ValueError.
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
    """The first ``most`` characters of a value's repr, for messages.

    >>> shown("a"), shown(10**5000)
    ("'a'", '<int>')
    """
    try:
        text = repr(value)
    except Exception:  # an integer of more than 4300 digits, or a repr that raises
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
    """The base class of the exceptions of diva_rs."""


class ConfigError(DivaError, ValueError):
    """A setting is out of range, unknown, or does not fit another one."""


class ShapeError(DivaError, ValueError):
    """A tensor has the wrong rank, size or dtype."""


class WeightsError(DivaError, RuntimeError):
    """A weight or an optimizer state is missing, unexpected or of a wrong shape."""


class DataError(DivaError, ValueError):
    """An image, a batch or a file cannot be used."""


class DeviceError(DivaError, RuntimeError):
    """A device is missing or out of memory, or inputs are on different devices."""


class RankError(DivaError, RuntimeError):
    """Another rank of the run failed or was lost."""


class DependencyError(DivaError, ImportError):
    """An optional library is not installed; the message holds the pip command."""
