"""Masks: the shapes of the world's objects and letters, as coverage on a fine grid."""

from functools import lru_cache
from typing import Any

import numpy as np

Mask = np.ndarray[Any, np.dtype[np.bool_]]

FINE = 3  # fine pixels along a pixel's side: what antialiasing averages

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


@lru_cache(maxsize=256)
def object_mask(name: str, direction: str, hollow: bool, side: int) -> Mask:
    """Fine-grid coverage (side x FINE, side x FINE) of an object that fills ``side`` pixels; a
    hollow one is a stroke of a tenth of its side along the outline."""
    outline = np.array(_OUTLINES[name])
    grid = (np.arange(side * FINE) + 0.5) / (side * FINE) * 2 - 1
    x, y = np.meshgrid(grid, -grid)
    mask = _inside(outline, x, y)
    if hollow:
        mask &= _distance(outline, x, y) < 0.2
    turned: Mask = np.rot90(mask, _QUARTERS[direction])
    return turned


@lru_cache(maxsize=64)
def glyph_mask(letter: str) -> Mask:
    """Fine-grid coverage of a letter, 7 x 9.8 pixels."""
    rows = np.array([[cell == "#" for cell in row] for row in _GLYPHS[letter]])
    return np.kron(rows, np.ones((4, 4), dtype=bool)).astype(bool)


@lru_cache(maxsize=8)
def dots_mask(count: int, diameter: int, pitch: int) -> Mask:
    """Fine-grid coverage of ``count`` discs in a row, sizes in pixels."""
    centres = (np.arange(count) * pitch + diameter / 2) * FINE
    y, x = np.ogrid[: diameter * FINE, : ((count - 1) * pitch + diameter) * FINE]
    middle, radius = diameter * FINE / 2, diameter * FINE / 2
    away = np.abs(x + 0.5 - centres[:, None, None]).min(axis=0)
    return np.asarray(away**2 + (y + 0.5 - middle) ** 2 < radius**2)


def _edges(outline: Any) -> Any:
    return zip(outline, np.roll(outline, -1, axis=0), strict=True)


def _inside(outline: Any, x: Any, y: Any) -> Mask:
    """The even-odd rule."""
    inside = np.zeros(x.shape, dtype=bool)
    for (x0, y0), (x1, y1) in _edges(outline):
        if y0 == y1:
            continue
        crosses = (y0 > y) != (y1 > y)
        inside ^= crosses & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside


def _distance(outline: Any, x: Any, y: Any) -> Any:
    """Distance of each point to the nearest edge."""
    nearest = np.full(x.shape, np.inf)
    for (x0, y0), (x1, y1) in _edges(outline):
        dx, dy = x1 - x0, y1 - y0
        along = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
        nearest = np.minimum(nearest, np.hypot(x - x0 - along * dx, y - y0 - along * dy))
    return nearest
