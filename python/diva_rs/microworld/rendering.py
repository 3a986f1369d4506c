"""From a scene to 48 x 48 pixels."""

from functools import lru_cache
from typing import Any

import numpy as np

from diva_rs.microworld.scenes import Scene

Image = np.ndarray[Any, np.dtype[np.uint8]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Area = tuple[int, int, int, int]  # top, left, height, width, in pixels

SIDE = 48  # pixels
FINE = 3  # fine pixels along a pixel's side: what antialiasing averages
_SIDES = {"near": 25, "far": 15}  # pixels of an object
_MARGIN = 3  # pixels kept free for the frame
_STRIP = 12  # pixels of the strip that holds the letter and the dots
_DOT, _PITCH = 4, 6  # pixels: a dot's diameter, and from one to the next
_AWAY = 2  # pixels by which an object may lie off the middle of its area

_ROWS, _COLUMNS = np.ogrid[: SIDE * FINE, : SIDE * FINE]  # of the fine grid

_COLOURS = {
    "red": (214, 48, 40),
    "green": (52, 168, 64),
    "blue": (56, 92, 220),
    "yellow": (236, 202, 44),
    "purple": (156, 62, 188),
    "white": (240, 240, 236),
}
_GROUND, _LETTER, _FRAME = (104, 107, 114), (14, 14, 16), (176, 128, 78)
_RAISED = 32  # by which the background's second tone is lighter

# Outlines in [-1, 1]², y upwards, pointing up. None looks the same after a quarter or a half turn, so that
# each object shows its direction.
_OUTLINES: dict[str, tuple[tuple[float, float], ...]] = {
    "arrow": ((0, 1), (0.9, 0.1), (0.35, 0.1), (0.35, -1), (-0.35, -1), (-0.35, 0.1), (-0.9, 0.1)),
    "boat": ((0, 1), (0.75, -0.15), (0.1, -0.15), (0.1, -0.35), (1, -0.35), (0.55, -1), (-0.55, -1),
             (-1, -0.35), (-0.1, -0.35), (-0.1, 0.8)),
    "cup": ((-0.75, 1), (-0.5, -1), (0.4, -1), (0.5, -0.3), (1, -0.15), (1, 0.65), (0.68, 0.65), (0.72, 1)),
    "fish": ((0, 1), (0.6, 0.45), (0.55, -0.15), (0.15, -0.5), (0.7, -1), (-0.7, -1), (-0.15, -0.5),
             (-0.55, -0.15), (-0.6, 0.45)),
    "flag": ((-0.8, 1), (0.9, 0.6), (-0.45, 0.05), (-0.45, -1), (-0.8, -1)),
    "house": ((0, 1), (0.95, 0.15), (0.7, 0.15), (0.7, -1), (0.2, -1), (0.2, -0.45), (-0.2, -0.45),
              (-0.2, -1), (-0.7, -1), (-0.7, 0.15), (-0.95, 0.15)),
    "key": ((-0.5, 1), (0.5, 1), (0.7, 0.6), (0.5, 0.2), (0.18, 0.2), (0.18, -0.4), (0.7, -0.4), (0.7, -0.62),
            (0.18, -0.62), (0.18, -0.78), (0.7, -0.78), (0.7, -1), (-0.18, -1), (-0.18, 0.2), (-0.5, 0.2),
            (-0.7, 0.6)),
    "tree": ((0, 1), (0.55, 0.35), (0.3, 0.35), (0.85, -0.45), (0.2, -0.45), (0.2, -1), (-0.2, -1),
             (-0.2, -0.45), (-0.85, -0.45), (-0.3, 0.35), (-0.55, 0.35)),
}  # fmt: skip

# Strokes on a 5 x 7 grid, x to the right and y down.
_GLYPHS: dict[str, tuple[str, ...]] = {
    "A": (" ### ", "#   #", "#   #", "#####", "#   #", "#   #", "#   #"),
    "H": ("#   #", "#   #", "#   #", "#####", "#   #", "#   #", "#   #"),
    "L": ("#    ", "#    ", "#    ", "#    ", "#    ", "#    ", "#####"),
    "O": (" ### ", "#   #", "#   #", "#   #", "#   #", "#   #", " ### "),
    "T": ("#####", "  #  ", "  #  ", "  #  ", "  #  ", "  #  ", "  #  "),
    "X": ("#   #", "#   #", " # # ", "  #  ", " # # ", "#   #", "#   #"),
}

_QUARTERS = {"up": 0, "left": 1, "down": 2, "right": 3}  # turns against the clock


def render(scene: Scene) -> Image:
    """The picture of a scene: (48, 48, 3) uint8, RGB.

    From the back to the front: texture, frame, object, letter, dots; drawn three times finer and averaged.
    The letter stands before, after, above or under the object, and one to three dots follow the letter.

    >>> render(Scene()).shape
    (48, 48, 3)
    """
    bits = _Bits(scene)
    canvas = np.empty((SIDE * FINE, SIDE * FINE, 3), dtype=np.float32)
    canvas[:] = ground = bits.tinted(_GROUND, 10)
    canvas[_texture(scene.value("texture"), scene.phase)] = ground + _RAISED
    if scene.value("border") == "framed":
        edge = 2 * FINE
        for place in (np.s_[:edge], np.s_[-edge:], np.s_[:, :edge], np.s_[:, -edge:]):
            canvas[place] = _FRAME
    colour = bits.tinted(_COLOURS[scene.value("colour")], 14)
    side, hollow = _SIDES[scene.value("size")], scene.value("fill") == "hollow"
    mask = _object_mask(scene.value("object"), scene.value("direction"), hollow, side)
    object_area, letter_area, dots_area = _areas(scene.value("position"))
    letter, dots = _glyph_mask(scene.value("glyph")), _dots_mask(scene.count + 1)
    if dots_area[2] > dots_area[3]:
        dots = dots.T
    _paint(canvas, mask, bits.within(object_area, mask, _AWAY), colour)
    _paint(canvas, letter, bits.within(letter_area, letter), _LETTER)
    _paint(canvas, dots, bits.within(dots_area, dots), _LETTER)
    fine = canvas.reshape(SIDE, FINE, SIDE, FINE, 3).mean(axis=(1, 3))
    pixels: Image = np.clip(np.rint(fine), 0, 255).astype(np.uint8)
    return pixels


class _Bits:
    """The scene's free words, used up a few bits at a time."""

    def __init__(self, scene: Scene) -> None:
        self._place, self._shade = scene.place, scene.shade

    def tinted(self, colour: tuple[int, int, int], most: int) -> np.ndarray[Any, Any]:
        """The colour, each channel moved by up to ``most``."""
        moved = []
        for channel in colour:
            moved.append(channel + (self._shade % 1009) / 1008 * 2 * most - most)
            self._shade = self._shade * 48271 % 2147483647
        return np.array(moved, dtype=np.float32)

    def within(self, area: Area, mask: Mask, away: int = SIDE) -> tuple[int, int]:
        """The fine (top, left) of a mask within the area, up to ``away`` pixels off its middle."""
        top, left, height, width = (edge * FINE for edge in area)
        corner = []
        for start, room in ((top, height - mask.shape[0]), (left, width - mask.shape[1])):
            self._place = (self._place * 48271 + 11) % 2147483647
            free = min(room, 2 * away * FINE)
            corner.append(start + (room - free) // 2 + self._place * (free + 1) // 2147483647)
        return corner[0], corner[1]


def _areas(position: str) -> tuple[Area, Area, Area]:
    """Where the object, the letter and the dots go; the last two share a strip."""
    low, length = _MARGIN, SIDE - 2 * _MARGIN
    rest, half = length - _STRIP, length // 2
    first = position in ("before", "above")  # the strip comes first, then the object
    strip, start = (low, low + _STRIP) if first else (low + rest, low)
    if position in ("before", "after"):
        return (low, start, length, rest), (low, strip, half, _STRIP), (low + half, strip, half, _STRIP)
    return (start, low, rest, length), (strip, low, _STRIP, half), (strip, low + half, _STRIP, half)


def _texture(name: str, phase: int) -> Mask:
    """Which fine pixels carry the background's second tone."""
    period = 8 * FINE
    y, x = (_ROWS + phase % period) % period, (_COLUMNS + phase // period % period) % period
    half = period // 2
    if name == "striped":
        return np.asarray((x + y) % period < half)
    if name == "dotted":
        return np.asarray((x - half) ** 2 + (y - half) ** 2 < (period * 0.3) ** 2)
    if name == "checked":
        return np.asarray((x < half) ^ (y < half))
    return np.zeros((SIDE * FINE, SIDE * FINE), dtype=bool)


def _paint(canvas: np.ndarray[Any, Any], mask: Mask, corner: tuple[int, int], colour: Any) -> None:
    top, left = corner
    canvas[top : top + mask.shape[0], left : left + mask.shape[1]][mask] = colour


@lru_cache(maxsize=256)
def _object_mask(name: str, direction: str, hollow: bool, side: int) -> Mask:
    """Fine-grid coverage of an object of ``side`` pixels; a hollow one is a stroke of a tenth of its side."""
    outline = np.array(_OUTLINES[name])
    grid = (np.arange(side * FINE) + 0.5) / (side * FINE) * 2 - 1
    x, y = np.meshgrid(grid, -grid)
    inside, nearest = np.zeros(x.shape, dtype=bool), np.full(x.shape, np.inf)
    for (x0, y0), (x1, y1) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        dx, dy = x1 - x0, y1 - y0
        if dy:  # the even-odd rule
            inside ^= ((y0 > y) != (y1 > y)) & (x < dx * (y - y0) / dy + x0)
        along = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
        nearest = np.minimum(nearest, np.hypot(x - x0 - along * dx, y - y0 - along * dy))
    turned: Mask = np.rot90(inside & (nearest < 0.2) if hollow else inside, _QUARTERS[direction])
    return turned


@lru_cache(maxsize=64)
def _glyph_mask(letter: str) -> Mask:
    """Fine-grid coverage of a letter, 7 x 9.8 pixels."""
    rows = np.array([[cell == "#" for cell in row] for row in _GLYPHS[letter]])
    return np.kron(rows, np.ones((4, 4), dtype=bool)).astype(bool)


@lru_cache(maxsize=8)
def _dots_mask(count: int) -> Mask:
    """Fine-grid coverage of ``count`` discs in a row."""
    centres = (np.arange(count) * _PITCH + _DOT / 2) * FINE
    y, x = np.ogrid[: _DOT * FINE, : ((count - 1) * _PITCH + _DOT) * FINE]
    radius = _DOT * FINE / 2
    away = np.abs(x + 0.5 - centres[:, None, None]).min(axis=0)
    return np.asarray(away**2 + (y + 0.5 - radius) ** 2 < radius**2)
