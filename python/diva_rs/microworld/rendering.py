"""From a scene to 48 x 48 pixels."""

from typing import Any

import numpy as np

from diva_rs._arguments import takes
from diva_rs.microworld.drawing import FINE, Mask, glyph_mask, object_mask
from diva_rs.microworld.scenes import SCENE, Scene

Image = np.ndarray[Any, np.dtype[np.uint8]]

SIDE = 48  # pixels
_SIDES = {"near": 14, "far": 9}  # pixels of an object
_MARGIN = 3  # pixels kept free for the frame
_STRIP = 12  # pixels of the strip that holds the letter

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


@takes(scene=SCENE)
def render(scene: Scene) -> Image:
    """The picture of a scene: (48, 48, 3) uint8, RGB.

    From the back to the front: background texture, frame, objects, letter; drawn three times finer and
    averaged. The letter stands left of the objects (before), right of them (after), above or under them.

    >>> render(Scene()).shape
    (48, 48, 3)
    """
    bits = _Bits(scene)
    canvas = np.empty((SIDE * FINE, SIDE * FINE, 3), dtype=np.float32)
    canvas[:] = ground = bits.tinted(_GROUND, 10)
    canvas[_texture(scene.value("texture"), scene.phase)] = ground + _RAISED
    if scene.value("border") == "framed":
        edge = 2 * FINE
        for side in (np.s_[:edge], np.s_[-edge:], np.s_[:, :edge], np.s_[:, -edge:]):
            canvas[side] = _FRAME
    colour = bits.tinted(_COLOURS[scene.value("colour")], 14)
    mask = object_mask(
        scene.value("object"),
        scene.value("direction"),
        scene.value("fill") == "hollow",
        _SIDES[scene.value("size")],
    )
    letter_area, object_area = _areas(scene.value("position"))
    for area in _split(object_area, scene.count + 1):
        _paint(canvas, mask, bits.within(area, mask), colour)
    letter = glyph_mask(scene.value("glyph"))
    _paint(canvas, letter, bits.within(letter_area, letter), _LETTER)
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

    def within(self, area: tuple[int, int, int, int], mask: Mask) -> tuple[int, int]:
        """Where the mask goes (top, left) so that it lies within the area, on the fine grid."""
        top, left, height, width = (edge * FINE for edge in area)
        corner = []
        for start, room in ((top, height - mask.shape[0]), (left, width - mask.shape[1])):
            self._place = (self._place * 48271 + 11) % 2147483647
            corner.append(start + (self._place * (max(room, 0) + 1) // 2147483647))
        return corner[0], corner[1]


def _areas(position: str) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
    """Where the letter and the objects go: (top, left, height, width) in pixels."""
    low, length = _MARGIN, SIDE - 2 * _MARGIN
    rest, far = length - _STRIP, SIDE - _MARGIN - _STRIP
    return {
        "before": ((low, low, length, _STRIP), (low, low + _STRIP, length, rest)),
        "after": ((low, far, length, _STRIP), (low, low, length, rest)),
        "above": ((low, low, _STRIP, length), (low + _STRIP, low, rest, length)),
        "under": ((far, low, _STRIP, length), (low, low, rest, length)),
    }[position]


def _split(area: tuple[int, int, int, int], parts: int) -> list[tuple[int, int, int, int]]:
    """The area cut along its longer side."""
    top, left, height, width = area
    if height > width:
        return [(top + height * n // parts, left, height // parts, width) for n in range(parts)]
    return [(top, left + width * n // parts, height, width // parts) for n in range(parts)]


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
