"""Recipes: every setting of a run as a checked value, and the published presets, one file per method."""

from diva_rs.recipes.presets import Preset, presets

__all__ = ["Preset", "presets"]
