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
