"""Another world: drawings of ten things in four styles, as a folder of images with a table of attributes.

It shares nothing with the microworld but the number of pixels. Two styles are for training, two are seen in
the split "sources" alone. Which combinations of values are for training and which for testing is decided by
a hash, so no tested combination was trained on.
"""

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from diva_rs._base.files import make_folder, write_text
from diva_rs._base.optional import require
from lab.worlds.table import TABLE, WORDS, part_of

SIDE, _FINE = 48, 192  # pixels of an image, and of the canvas that it is reduced from

VALUES: dict[str, tuple[str, ...]] = {
    "count": ("one", "two", "three"),
    "colour": ("red", "green", "blue", "yellow", "purple"),
    "pattern": ("striped", "dotted"),
    "pose": ("standing", "lying"),
    "side": ("left", "right"),
    "time": ("day", "dusk", "night"),
}

VOCABULARY = """\
templates = ["a drawing of {}"]
subjects = [SUBJECTS]

[attributes.count]
words = ["one", "two", "three"]
plural = ["two", "three"]

[attributes.colour]
words = ["red", "green", "blue", "yellow", "purple"]

[attributes.pattern]
words = ["", "striped", "dotted"]

[attributes.pose]
words = ["standing", "lying"]
phrase = "in a {} pose"

[attributes.side]
words = ["left", "right"]
phrase = "on the {} side"

[attributes.time]
words = ["day", "dusk", "night"]
phrase = "by {}"
"""

# Outlines in a square from -1 to 1, y downwards: parts in the thing's colour, then dark ones.
_Part = tuple[str, Sequence[tuple[float, float]]]
_THINGS: dict[str, tuple[tuple[_Part, ...], tuple[_Part, ...]]] = {
    "mushroom": (
        (("polygon", [(-0.9, 0), (-0.7, -0.6), (-0.2, -0.9), (0.2, -0.9), (0.7, -0.6), (0.9, 0)]),),
        (("polygon", [(-0.25, 0), (0.25, 0), (0.35, 0.9), (-0.35, 0.9)]),),
    ),
    "umbrella": (
        (("polygon", [(-1, 0), (-0.6, -0.7), (0, -0.95), (0.6, -0.7), (1, 0), (0.5, -0.15), (-0.5, -0.15)]),),
        (
            (
                "polygon",
                [(-0.07, -0.15), (0.07, -0.15), (0.07, 0.95), (-0.4, 0.95), (-0.4, 0.75), (-0.07, 0.75)],
            ),
        ),
    ),
    "lamp": (
        (("polygon", [(-0.35, -0.95), (0.35, -0.95), (0.75, -0.05), (-0.75, -0.05)]),),
        (("polygon", [(-0.08, 0), (0.08, 0), (0.08, 0.75), (0.5, 0.95), (-0.5, 0.95), (-0.08, 0.75)]),),
    ),
    "bottle": (
        (("polygon", [(-0.2, -0.6), (0.2, -0.6), (0.55, -0.1), (0.55, 0.95), (-0.55, 0.95), (-0.55, -0.1)]),),
        (("polygon", [(-0.22, -0.95), (0.22, -0.95), (0.22, -0.65), (-0.22, -0.65)]),),
    ),
    "rocket": (
        (("polygon", [(0, -1), (0.4, -0.4), (0.4, 0.5), (-0.4, 0.5), (-0.4, -0.4)]),),
        (
            ("polygon", [(-0.4, 0.1), (-0.85, 0.9), (-0.3, 0.55)]),
            ("polygon", [(0.4, 0.1), (0.85, 0.9), (0.3, 0.55)]),
        ),
    ),
    "heart": (
        (
            ("ellipse", [(-0.95, -0.85), (0.05, 0.1)]),
            ("ellipse", [(-0.05, -0.85), (0.95, 0.1)]),
            ("polygon", [(-0.88, -0.15), (0.88, -0.15), (0, 0.95)]),
        ),
        (),
    ),
    "bell": (
        (("polygon", [(-0.25, -0.8), (0.25, -0.8), (0.5, 0.1), (0.9, 0.55), (-0.9, 0.55), (-0.5, 0.1)]),),
        (("ellipse", [(-0.22, 0.5), (0.22, 0.95)]),),
    ),
    "candle": (
        (("polygon", [(-0.35, -0.3), (0.35, -0.3), (0.35, 0.95), (-0.35, 0.95)]),),
        (("polygon", [(0, -1), (0.2, -0.55), (0, -0.3), (-0.2, -0.55)]),),
    ),
    "cactus": (
        (
            ("polygon", [(-0.2, -0.95), (0.2, -0.95), (0.2, 0.6), (-0.2, 0.6)]),
            ("polygon", [(-0.8, -0.5), (-0.5, -0.5), (-0.5, 0), (-0.2, 0), (-0.2, 0.25), (-0.8, 0.25)]),
            ("polygon", [(0.8, -0.7), (0.5, -0.7), (0.5, -0.2), (0.2, -0.2), (0.2, 0.05), (0.8, 0.05)]),
        ),
        (("polygon", [(-0.5, 0.6), (0.5, 0.6), (0.35, 0.95), (-0.35, 0.95)]),),
    ),
    "crown": (
        (
            (
                "polygon",
                [(-0.9, -0.7), (-0.45, 0), (0, -0.8), (0.45, 0), (0.9, -0.7), (0.75, 0.7), (-0.75, 0.7)],
            ),
        ),
        (("polygon", [(-0.75, 0.5), (0.75, 0.5), (0.75, 0.8), (-0.75, 0.8)]),),
    ),
}
PLAIN = ("lamp", "candle", "cactus")  # no pattern applies to these

_COLOURS = {
    "red": (214, 50, 45),
    "green": (50, 160, 70),
    "blue": (50, 95, 215),
    "yellow": (240, 200, 45),
    "purple": (150, 65, 180),
}
_SKIES = {"day": (205, 232, 250), "dusk": (246, 178, 132), "night": (66, 66, 104)}
_DARK = (45, 38, 40)


# Pictures of each combination and style.
COPIES = {"train": 2, "feedback": 1, "validation": 2, "test": 4, "sources": 4}


def draw_world(
    folder: str | Path, copies: Mapping[str, int] = COPIES, things: Iterable[str] = tuple(_THINGS)
) -> Path:
    """Draw the images and write their table and the vocabulary's file; returns the folder."""
    image, place = require("PIL.Image", extra="demo"), make_folder(folder)
    rows = []
    for number, (split, style, thing, values) in enumerate(_listed(copies, things)):
        name = f"{split}/{number:05}.png"
        (place / split).mkdir(exist_ok=True)
        # The table is written last and as a whole; twenty thousand synced files would take minutes.
        image.fromarray(picture(thing, values, style, number)).save(place / name)
        rows.append({"file": name, "subject": thing, **values, "source": style, "split": split})
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(place / TABLE, text.getvalue())
    names = ", ".join(f'"{thing}"' for thing in _THINGS)
    write_text(place / WORDS, VOCABULARY.replace("SUBJECTS", names))
    return place


def _listed(
    copies: Mapping[str, int], things: Iterable[str]
) -> Iterator[tuple[str, str, str, dict[str, str]]]:
    """(split, style, thing, values) of each image."""
    styles = list(STYLES)
    for thing in things:
        choices = [("",) if name == "pattern" and thing in PLAIN else VALUES[name] for name in VALUES]
        for chosen in product(*choices):
            values = dict(zip(VALUES, chosen, strict=True))
            part = part_of((thing, *chosen))
            own, others = [(part, style) for style in styles[:2]], []
            if part == "train":
                others = [("feedback", style) for style in styles[:2]]
            elif part == "test":
                others = [("sources", style) for style in styles[2:]]
            for split, style in (*own, *others):
                yield from ((split, style, thing, values) for _ in range(copies[split]))


def picture(thing: str, values: Mapping[str, str], style: str, seed: int) -> Any:
    """One drawing as (48, 48, 3) uint8; ``seed`` decides what no attribute names.

    >>> picture("heart", {name: words[0] for name, words in VALUES.items()}, "flat", 0).shape
    (48, 48, 3)
    """
    image = require("PIL.Image", extra="demo")
    chance = np.random.default_rng(seed)
    sky = _tinted(_SKIES[values["time"]], chance, 14)
    canvas = image.new("RGB", (_FINE, _FINE), sky)
    number = VALUES["count"].index(values["count"]) + 1
    radius = _FINE * (0.24, 0.185, 0.142)[number - 1] * chance.uniform(0.92, 1.08)
    middle = _FINE * ((0.3 if values["side"] == "left" else 0.7) + chance.uniform(-0.03, 0.03))
    start = _FINE * (0.5 + chance.uniform(-0.06, 0.06))
    colour = _tinted(_COLOURS[values["colour"]], chance, 18)
    for one in range(number):
        centre = (middle + chance.uniform(-4, 4), start + (one - (number - 1) / 2) * 2.15 * radius)
        angle = (90.0 if values["pose"] == "lying" else 0.0) + chance.uniform(-8, 8)
        stamp = _stamp(thing, values["pattern"], colour, radius, angle, STYLES[style], chance)
        canvas.paste(stamp, tuple(round(c - stamp.width / 2) for c in centre), stamp)
    return STYLES[style].finish(np.asarray(canvas.resize((SIDE, SIDE), image.Resampling.BOX)), chance)


class Style:
    """How things are drawn: width and colour of the outline, whether bodies are filled, and a last touch."""

    def __init__(
        self,
        outline: float,
        ink: tuple[int, int, int] | None,
        filled: bool,
        finish: Callable[[Any, Any], Any] = lambda pixels, chance: pixels,
    ) -> None:
        self.outline, self.ink, self.filled, self.finish = outline, ink, filled, finish


def _blocks(pixels: Any, chance: Any) -> Any:
    """Blocks of 2 x 2 pixels, few levels."""
    small = pixels.reshape(SIDE // 2, 2, SIDE // 2, 2, 3).mean(axis=(1, 3))
    return (np.round(small / 32) * 32).clip(0, 255).astype(np.uint8).repeat(2, 0).repeat(2, 1)


def _paper(pixels: Any, chance: Any) -> Any:
    """A washed-out drawing on rough paper."""
    pale = 0.72 * pixels + 0.28 * 245 + chance.normal(0, 9, (SIDE, SIDE, 1))
    return pale.clip(0, 255).astype(np.uint8)


STYLES: dict[str, Style] = {
    "flat": Style(0, None, filled=True),
    "inked": Style(0.1, _DARK, filled=True),
    "blocks": Style(0.06, (250, 250, 250), filled=True, finish=_blocks),
    "crayon": Style(0.22, None, filled=False, finish=_paper),
}


def _stamp(
    thing: str, pattern: str, colour: Any, radius: float, angle: float, style: Style, chance: Any
) -> Any:
    """The thing on a transparent square."""
    image, drawing = require("PIL.Image", extra="demo"), require("PIL.ImageDraw", extra="demo")
    side = round(2.5 * radius)
    bodies, details = _THINGS[thing]
    stamp = image.new("RGBA", (side, side), (0, 0, 0, 0))
    mask = image.new("L", (side, side), 0)
    pen, stencil = drawing.Draw(stamp), drawing.Draw(mask)
    width = round(style.outline * radius)
    ink = style.ink or tuple(int(0.75 * c) for c in colour)
    pale = tuple(int(0.6 * c + 0.4 * 255) for c in colour)
    for parts, tone in ((details, _DARK), (bodies, colour)):
        for kind, points in parts:
            placed = [(side / 2 + radius * x, side / 2 + radius * y) for x, y in points]
            fill = tone if style.filled or tone is _DARK else pale
            getattr(pen, kind)(placed, fill=fill)
            if width and kind == "polygon":
                pen.line([*placed, placed[0], placed[1]], fill=ink, width=width, joint="curve")
            if tone is colour:
                getattr(stencil, kind)(placed, fill=255)
    if pattern:
        marks = image.new("RGBA", (side, side), (0, 0, 0, 0))
        _marks(drawing.Draw(marks), pattern, side, radius, chance.uniform(0, 1))
        stamp.paste(marks, (0, 0), image.composite(marks.getchannel("A"), image.new("L", mask.size, 0), mask))
    return stamp.rotate(angle, image.Resampling.BICUBIC)


def _marks(pen: Any, pattern: str, side: int, radius: float, phase: float) -> None:
    """White stripes or dots over the whole square."""
    step, white = 0.42 * radius, (255, 255, 255, 255)
    for row in range(math.ceil(side / step) + 1):
        y = (row - phase) * step
        if pattern == "striped":
            pen.rectangle([(0, y), (side, y + 0.4 * step)], fill=white)
            continue
        for column in range(math.ceil(side / step) + 1):
            x = (column - phase + row % 2 / 2) * step
            pen.ellipse([(x, y), (x + 0.55 * step, y + 0.55 * step)], fill=white)


def _tinted(colour: Sequence[int], chance: Any, most: int) -> tuple[int, ...]:
    return tuple(int(np.clip(c + chance.integers(-most, most + 1), 0, 255)) for c in colour)
