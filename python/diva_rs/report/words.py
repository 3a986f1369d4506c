"""How numbers and differences are put into words: the same everywhere in a report."""

import math
from typing import Any

NOT_RECORDED = "not recorded"
MINUS = "\N{MINUS SIGN}"


def figure(value: Any, digits: int = 4) -> str:
    """A number to ``digits`` significant digits; None and NaN in words.

    >>> figure(1.1), figure(12345.6), figure(3), figure(1e-7), figure(0.0), figure(None)
    ('1.100', '12,346', '3', '1.000e-07', '0', 'not recorded')
    """
    if value is None or isinstance(value, bool) or not isinstance(value, (int, float)):
        return NOT_RECORDED if value is None else str(value)
    if isinstance(value, int):
        return minus(f"{value:,}")
    if not math.isfinite(value):
        return "not finite"
    if abs(value) >= 10 ** (digits - 1) or value == 0:
        return minus(f"{value:,.0f}")
    return minus(f"{value:#.{digits}g}")


def percent(value: float) -> str:
    """Per cent with one decimal.

    >>> percent(25.93)
    '25.9 %'
    """
    return f"{value:.1f} %"


def points(value: float) -> str:
    """A difference in percentage points, with its sign.

    >>> points(6.67), points(-0.001)
    ('+6.7', '0.0')
    """
    text = f"{value:+.1f}"
    return "0.0" if float(text) == 0 else minus(text)


def between(low: float, high: float) -> str:
    """An interval of per cent.

    >>> between(19.31, 33.9)
    '19.3 to 33.9'
    """
    return f"{low:.1f} to {high:.1f}"


def points_between(low: float, high: float) -> str:
    """An interval of percentage points.

    >>> points_between(1.3, 14.7)
    '+1.3 to +14.7'
    """
    return f"{points(low)} to {points(high)}"


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


def minus(text: str) -> str:
    """A number's leading hyphen as a minus sign.

    >>> minus("-3.1e-05") == MINUS + "3.1e-05"
    True
    """
    return MINUS + text[1:] if text.startswith("-") else text


def count(number: int, noun: str, plural: str = "") -> str:
    """A count with its noun.

    >>> count(1, "pair"), count(1234, "step")
    ('1 pair', '1,234 steps')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
