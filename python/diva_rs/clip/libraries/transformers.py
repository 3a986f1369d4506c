"""CLIP and SigLIP of transformers (4.50 and later, 5.x): full models and vision-only ones.

Source: transformers/models/clip/modeling_clip.py and siglip/modeling_siglip.py. CLIP's `last_hidden_state`
is before `post_layernorm`, which only the pooled token goes through; SigLIP's is after it. Up to 4.x the
vision-only classes keep their parts in `.vision_model`, later in themselves.
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diva_rs._base.files import read_text
from diva_rs.clip.heads import split_head
from diva_rs.clip.tower import HALF, OPENAI_MEAN, OPENAI_STD, Tower, Triple, three, two
from diva_rs.clip.wrappers import unwrap
from diva_rs.errors import ConfigError

SUPPORTED = (
    "transformers CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection (MetaClip2 as well), SiglipModel "
    "and SiglipVisionModel"
)

_KINDS = ("Model", "VisionModel", "VisionModelWithProjection", "VisionTransformer")
_CLIP_CLASSES = frozenset(family + kind for family in ("CLIP", "MetaClip2") for kind in _KINDS)
_SIGLIP_CLASSES = frozenset({"SiglipModel", "SiglipVisionModel", "SiglipVisionTransformer"})


class VisionPart(nn.Module):
    """The two vision modules of a full model, without its text tower, under the keys that they have there."""

    def __init__(self, vision_model: nn.Module, visual_projection: nn.Module | None) -> None:
        super().__init__()
        self.vision_model = vision_model
        if visual_projection is not None:
            self.visual_projection = visual_projection


def family_of(model: nn.Module) -> Literal["clip", "siglip"] | None:
    """ "clip", "siglip", or None when `model` is not (derived from) one of the supported classes."""
    names = {cls.__name__ for cls in type(model).__mro__ if cls.__module__.startswith("transformers.")}
    if names & _CLIP_CLASSES:
        return "clip"
    return "siglip" if names & _SIGLIP_CLASSES else None


def class_of(model: nn.Module) -> str:
    """The name of the class of transformers that `model` is of or derived from."""
    return next(cls.__name__ for cls in type(model).__mro__ if cls.__module__.startswith("transformers."))


def matches(model: nn.Module) -> bool:
    """Whether a model is (derived from) a supported class of transformers."""
    return family_of(model) is not None


def build(model: Any, where: str = "") -> Tower:
    """The tower over a transformers CLIP or SigLIP model."""
    name, siglip = type(model).__name__, family_of(model) == "siglip"
    given = processor_of(model)
    mean, std = (HALF, HALF) if siglip else (OPENAI_MEAN, OPENAI_STD)
    statistics = three(given.get("image_mean"), mean), three(given.get("image_std"), std)
    if not hasattr(model, "text_model"):
        return _over(model, name, siglip, where, statistics)
    part = VisionPart(unwrap(model.vision_model), getattr(model, "visual_projection", None))
    return _over(part, name, siglip, "vision_model", statistics)


def processor_of(model: Any) -> dict[str, Any]:
    """The image processor's configuration in the folder that a model was loaded from; empty without one."""
    content: Any = {}
    folder = getattr(model, "name_or_path", "")
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads(read_text(Path(folder, "preprocessor_config.json"))) if folder else {}
    return content if isinstance(content, dict) else {}


def _over(module: nn.Module, name: str, siglip: bool, where: str, statistics: tuple[Triple, Triple]) -> Tower:
    part: Any = module
    core: Any = unwrap(part.vision_model) if hasattr(part, "vision_model") else part
    if siglip and getattr(core, "head", None) is None:
        raise ConfigError(
            f"{name} was built with vision_use_head=False and has no pooled token: load it with its head"
        )
    projection = getattr(part, "visual_projection", None)
    chain = [core.post_layernorm, *([projection] if projection is not None else [])]
    head = split_head([] if siglip else chain)
    positions, width = (int(size) for size in core.embeddings.position_embedding.weight.shape)

    def tap(pixels: Tensor) -> Tensor:
        out = core(pixel_values=pixels)
        # By position: a model configured with return_dict=False returns a tuple.
        tokens: Tensor = out[0]  # (B, 1 + P, W), without the 1 in SigLIP
        if siglip:
            return torch.cat([out[1].unsqueeze(1), tokens], dim=1)
        return head.apply(tokens)

    return Tower(
        name=name,
        family="transformers-siglip" if siglip else "transformers-clip",
        module=module,
        norm=head.norm,
        proj=head.proj,
        proj_transposed=True,
        patches=positions if siglip else positions - 1,
        width=head.width(width),
        embed_dim=head.embed_dim(width),
        image_size=two(core.config.image_size),
        mean=statistics[0],
        std=statistics[1],
        where=where,
        stem=core.embeddings.patch_embedding,
        tap=tap,
        rebuild=lambda copied: _over(copied, name, siglip, where, statistics),
    )
