"""Reading of TOML files that may be anything."""

import os
import sys
from typing import Any

from diva_rs._base.files import as_path, read_text
from diva_rs.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MOST_DOTS = 1000  # tomllib needs memory with the square of the parts of a dotted key


def read_toml(path: str | os.PathLike[str], what: str, most: int = 1 << 16) -> dict[str, Any]:
    """The content of a TOML file of at most ``most`` bytes; ``what`` names the file in the ConfigError."""
    try:
        text = read_text(as_path(path), most)
        if text.count(".") > _MOST_DOTS:
            raise ValueError(f"more than {_MOST_DOTS} dots")
        return tomllib.loads(text)
    except OSError as err:
        raise ConfigError(f"{what} {path} cannot be read: {err.strerror or err}") from err
    except (ValueError, RecursionError) as err:  # not all of them are TOMLDecodeError
        raise ConfigError(f"{what} {path} is not valid TOML: {err}") from err
