"""Scales and ticks of charts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from diva_rs.report.words import minus


@dataclass(frozen=True)
class Scale:
    """A linear map from [low, high] to the pixels [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value.

        >>> Scale(0, 10, 100, 200)(2.5)
        125.0
        """
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round values within [low, high], at most ``most``, 1, 2 or 5 times a power of ten apart.

    >>> ticks(0, 60), ticks(0.97, 1.04, 4)
    ([0.0, 20.0, 40.0, 60.0], [0.98, 1.0, 1.02, 1.04])
    """
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (power, 2 * power, 5 * power, 10 * power, 20 * power):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    # Divided where that is exact: 3 * 0.1 is not 0.3.
    return [round(n * step, 12 - math.floor(math.log10(step))) for n in range(first, last + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """As few decimals as tell the ticks apart, all the same number.

    >>> tick_labels([0.98, 1.0, 1.02]), tick_labels([0.0, 5e-05, 1e-4])
    (['0.98', '1.00', '1.02'], ['0', '5e-5', '1e-4'])
    """
    largest = max(map(abs, values), default=0.0)
    if largest >= 1e5 or 0 < largest < 1e-3:
        return [
            "0" if value == 0 else f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-") for value in values
        ]
    for decimals in range(7):
        labels = [f"{value:.{decimals}f}" for value in values]
        if all(
            abs(float(label) - value) <= 1e-9 * max(1, largest)
            for label, value in zip(labels, values, strict=True)
        ):
            break
    return [minus(label) for label in labels]


def span(values: Sequence[float], margin: float = 0.06) -> tuple[float, float]:
    """A range that shows all finite values with some air; never empty.

    >>> span([1.0, 2.0], margin=0.1), span([]), span([3.0])
    ((0.9, 2.1), (0.0, 1.0), (2.7, 3.3))
    >>> [round(end, 6) for end in span([1.0, 1.0 + 1e-15], margin=0.0)]
    [0.9, 1.1]
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    apart = high - low > 1e-9 * max(abs(low), abs(high))  # closer ones would be one after rounding
    air = margin * (high - low) if apart else 0.1 * abs(high) or 1.0
    return round(low - air, 15), round(high + air, 15)
