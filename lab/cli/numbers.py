"""Types of numbers on the command line, for ``type=`` of argparse."""

from argparse import ArgumentTypeError


def count(text: str) -> int:
    """An integer of at least 1.

    >>> count("12")
    12
    """
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r}: an integer of at least 1 is needed")
    return int(text)


def seed(text: str) -> int:
    """An integer of at least 0."""
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text!r}: an integer of at least 0 is needed")
    return int(text)


def seeds(text: str) -> range:
    """The number of seeds from 0, or the first and the last one.

    >>> seeds("3"), seeds("5-9")
    (range(0, 3), range(5, 10))
    """
    first, dash, last = text.partition("-")
    return range(seed(first), seed(last) + 1) if dash else range(count(text))
