"""Arguments of public functions, refused by name before anything is done with them."""

from pathlib import Path
from typing import Any

from diva_rs.errors import ConfigError, shown
from diva_rs.recipes.kinds import Kind


def checked(name: str, value: Any, kind: Kind) -> Any:
    """The value as its kind keeps it.

    Raises:
        ConfigError: it is of another type or out of range.

    >>> from diva_rs.recipes.kinds import integer
    >>> checked("resamples", "many", integer(least=1))
    Traceback (most recent call last):
    diva_rs.errors.ConfigError: resamples='many': an integer of at least 1 is needed
    """
    try:
        return kind.convert(value)
    except (ValueError, OverflowError) as err:
        raise ConfigError(f"{name}={shown(value)}: {err}") from err


def as_path(path: Any, name: str = "path") -> Path:
    """The path.

    Raises:
        ConfigError: it is neither a string nor an ``os.PathLike`` of one.

    >>> as_path(3)
    Traceback (most recent call last):
    diva_rs.errors.ConfigError: path=3: a string or a pathlib.Path is needed
    """
    try:
        return Path(path)
    except TypeError as err:
        raise ConfigError(f"{name}={shown(path)}: a string or a pathlib.Path is needed") from err


def of_type(name: str, value: Any, kind: type, words: str) -> None:
    """Refuse a value of another type; ``words`` say what is needed.

    Raises:
        ConfigError: it is no ``kind``.

    >>> of_type("other", 3, str, "a string")
    Traceback (most recent call last):
    diva_rs.errors.ConfigError: other is a int: a string is needed
    """
    if not isinstance(value, kind):
        raise ConfigError(f"{name} is a {type(value).__name__}: {words} is needed")
