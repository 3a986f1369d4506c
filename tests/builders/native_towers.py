"""What the tests of native towers share."""

from typing import Any

import pytest
from torch import Tensor

from builders import openai_clip
from diva_rs import _native
from diva_rs.clip import Tower
from diva_rs.native.vision import describe

ONE_PER_FAMILY = [
    "open_clip-layer-scale",
    "timm-siglip",
    "transformers-clip",
    "transformers-siglip",
    "openai",
]


def as_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes are recognised by their full names; the stand-in's computation is that of OpenAI's package."""
    for name in ("VisionTransformer", "Transformer", "ResidualAttentionBlock", "QuickGELU"):
        cls = getattr(openai_clip, name)
        monkeypatch.setattr(cls, "__module__", "clip.model")
        monkeypatch.setattr(cls.forward, "__module__", "clip.model")


def build(tower: Tower, weights: dict[str, Tensor] | None = None, **fields: Any) -> Any:
    config, own = describe(tower)
    merged = {**config, "compute": None, "checkpoint": False, **fields}
    return _native.Network("vision_transformer", merged, own if weights is None else weights)
