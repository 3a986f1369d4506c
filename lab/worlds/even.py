"""How often the captions of a world name an attribute, where a number of pairs right is aimed at."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Even:
    """An attribute is named more often, the fewer of its pairs are right.

    Its probability is ``most`` * (``aim`` - pairs right) / ``band``, limited to [0, ``most``]. The pairs are
    those of the train split, at most ``per_pattern`` of each attribute, and are scored every ``every`` steps.

    Attributes:
        aim, band: in per cent of the pairs.
    """

    aim: float = 33.0
    band: float = 10.0
    most: float = 0.2
    every: int = 5
    per_pattern: int = 64
