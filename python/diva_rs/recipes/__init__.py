"""Published recipes, one file per model family; `Recipe.named` finds them by name.

Each value stands beside its source. ``diva-…`` is the method as the paper describes it, ``diva-official-…``
what the official code computes.
"""

from diva_rs.recipes import dfn, metaclip, openai, siglip
from diva_rs.recipes.preset import Preset

PRESETS: dict[str, Preset] = {**openai.PRESETS, **metaclip.PRESETS, **dfn.PRESETS, **siglip.PRESETS}

__all__ = ["PRESETS", "Preset"]
