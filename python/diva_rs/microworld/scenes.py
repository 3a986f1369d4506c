"""The world: what a scene consists of, and the scene of each (seed, index).

Ten attributes, independent and uniform. Nine of them stand for MMVP's nine visual patterns (`PATTERNS`), the
tenth, the object, is what short captions name and zero-shot classification asks for.
"""

import operator
from dataclasses import dataclass, replace

import numpy as np

from diva_rs._base.settings import hint
from diva_rs.errors import ConfigError, DataError, shown

VALUES: dict[str, tuple[str, ...]] = {
    "object": ("arrow", "boat", "cup", "fish", "flag", "house", "key", "tree"),
    "direction": ("left", "right", "up", "down"),
    "border": ("unframed", "framed"),
    "fill": ("solid", "hollow"),
    "count": ("one", "two", "three"),
    "position": ("before", "after", "above", "under"),
    "colour": ("red", "green", "blue", "yellow", "purple", "white"),
    "texture": ("plain", "striped", "dotted", "checked"),
    "glyph": ("A", "H", "L", "O", "T", "X"),
    "size": ("near", "far"),
}

# MMVP's names of the nine patterns, and the attribute in which the two scenes of a pair differ.
PATTERNS: dict[str, str] = {
    "Orientation and Direction": "direction",
    "Presence of Specific Features": "border",
    "State and Condition": "fill",
    "Quantity and Count": "count",
    "Positional and Relational Context": "position",
    "Color and Appearance": "colour",
    "Structural Characteristics": "texture",
    "Texts": "glyph",
    "Viewpoint and Perspective": "size",
}

_LIMIT = 1 << 63  # of seeds and indices: Philox keys are two 64-bit words
_WORD = 1 << 32


@dataclass(frozen=True)
class Scene:
    """One scene: a value index per attribute (see `VALUES`), and three 32-bit words that no caption names:
    they move the objects, tint the colours and shift the background, so that no two scenes look the same.

    >>> Scene(object=3, count=1).value("object"), Scene(object=3, count=1).value("count")
    ('fish', 'two')
    """

    object: int = 0
    direction: int = 0
    border: int = 0
    fill: int = 0
    count: int = 0
    position: int = 0
    colour: int = 0
    texture: int = 0
    glyph: int = 0
    size: int = 0
    place: int = 0
    shade: int = 0
    phase: int = 0

    def __post_init__(self) -> None:
        for name, number in vars(self).items():
            values = len(VALUES[name]) if name in VALUES else _WORD
            if type(number) is not int or not 0 <= number < values:
                raise ConfigError(f"{name}={shown(number)}: a whole number from 0 to {values - 1} is needed")

    def value(self, attribute: str) -> str:
        """The word for an attribute."""
        number: int = getattr(self, checked_attribute(attribute))
        return VALUES[attribute][number]

    def labels(self) -> tuple[int, ...]:
        """The value indices, in the order of `VALUES`."""
        return tuple(getattr(self, name) for name in VALUES)

    def differing(self, other: "Scene") -> list[str]:
        """The fields in which two scenes differ.

        >>> Scene().differing(Scene(colour=2))
        ['colour']
        """
        return [name for name, value in vars(self).items() if value != getattr(other, name)]


def scene(seed: int, index: int) -> Scene:
    """The scene with that number in the world of ``seed``: the same on every machine.

    Words of the generator Philox, keyed by (seed, index): NumPy keeps a bit generator's raw output stable
    over its versions.

    >>> scene(0, 7) == scene(0, 7), scene(0, 7) == scene(0, 8)
    (True, False)
    """
    key = [operator.index(seed), operator.index(index)]
    if min(key) < 0 or max(key) >= _LIMIT:
        raise DataError(f"seed={seed}, index={index}: a whole number from 0 to 2**63 - 1 is needed for each")
    generator = np.random.Philox(key=np.array(key, np.uint64))
    words = [int(word) >> 32 for word in generator.random_raw(len(VALUES) + 3)]
    # Multiply and shift: a 32-bit word to 0 … n-1, with a bias below 1e-8 for such small n.
    labels = [word * len(values) >> 32 for word, values in zip(words, VALUES.values(), strict=False)]
    return Scene(*labels, *words[len(VALUES) :])


def changed(base: Scene, attribute: str, step: int) -> Scene:
    """The scene with another value of one attribute, ``step`` values on (cyclically), and all else equal.

    >>> changed(Scene(), "colour", 2).value("colour")
    'blue'
    """
    values = VALUES[checked_attribute(attribute)]
    if step % len(values) == 0:
        raise ConfigError(f"step={step} leaves {attribute} unchanged: it has {len(values)} values")
    return replace(base, **{attribute: (getattr(base, attribute) + step) % len(values)})


def checked_attribute(attribute: str) -> str:
    """The attribute's name; ConfigError if the world has no such attribute."""
    if attribute not in VALUES:
        near = hint(attribute, VALUES) or f": one of {', '.join(VALUES)}"
        raise ConfigError(f"the world has no attribute {shown(attribute)}{near}")
    return attribute
