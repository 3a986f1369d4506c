"""How numbers are written: filters of the page's templates."""

import math
from typing import Any


def figure(value: Any, digits: int = 4) -> str:
    """A number to ``digits`` significant digits; None and NaN in words, and every other value as it is.

    >>> figure(1.1), figure(12345.6), figure(3), figure(1e-7), figure(0.0), figure(None)
    ('1.100', '12,346', '3', '1.000e-07', '0', 'not recorded')
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "not recorded" if value is None else str(value)
    if isinstance(value, int):
        return minus(f"{value:,}")
    if not math.isfinite(value):
        return "not finite"
    if abs(value) >= 10 ** (digits - 1) or value == 0:
        return minus(f"{value:,.0f}")
    return minus(f"{value:#.{digits}g}")


def points(value: float) -> str:
    """A difference in percentage points, with its sign.

    >>> points(6.67), points(-0.001)
    ('+6.7', '0.0')
    """
    text = f"{value:+.1f}"
    return "0.0" if float(text) == 0 else minus(text)


def between(interval: tuple[float, float]) -> str:
    """An interval in per cent."""
    return f"{interval[0]:.1f} to {interval[1]:.1f}"


def level(confidence: float) -> str:
    """The confidence of an interval, in per cent."""
    return f"{100 * confidence:.3g} %"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours.

    >>> duration(42.42), duration(150), duration(8000)
    ('42.4 s', '2 min 30 s', '2 h 13 min')
    """
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left} min" if hours else f"{minutes} min {rest} s"


def count(number: int, noun: str) -> str:
    """A count with its noun."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def minus(text: str) -> str:
    """A number's leading hyphen as a minus sign."""
    return f"\N{MINUS SIGN}{text[1:]}" if text.startswith("-") else text
