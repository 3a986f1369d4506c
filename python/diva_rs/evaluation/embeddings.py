"""Which vector stands for an image: the library's own embedding, or that of DIVA's published scores.

The official runs score different embeddings for different models, and not the one that the model's library
gives; numbers compare only under the same one. Source: github baaivision/DIVA, condition/*.py and
run_DIVA_with_*.py, whose random choice of tokens is here a function of the seed and the question's id.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from diva_rs._base.settings import hint
from diva_rs.clip.tower import Tower
from diva_rs.errors import ConfigError, ShapeError, shown
from diva_rs.step.draws import draw

Combine = Callable[[Tensor, Tensor], Tensor]
"""(first token (B, D), patches (B, P, D)), both after the CLIP projection -> (B, D)."""


@dataclass(frozen=True)
class ImageEmbedding:
    """How an image's tokens become the vector that is scored."""

    name: str  # in arguments and reports
    about: str  # in words
    combine: Combine | None = None  # from the projected tokens; None for the library's own embedding
    choose: Callable[[int], int] | None = None  # how many of P patches are drawn, with replacement; None: all
    normalized: bool = True  # whether the vector is L2-normalised before the dot product with the text

    def of_tokens(self, tower: Tower, tokens: Tensor, ids: Sequence[int], seed: int = 0) -> Tensor:
        """(B, 1 + P, W) tokens of images with these ids -> (B, D)."""
        if self.combine is None:
            return tower.embed(tokens)
        projected = tower.project(tokens)
        first, patches = projected[:, 0], projected[:, 1:]
        if self.choose is not None:
            patches = _chosen(patches, self.choose(patches.shape[1]), ids, seed)
        combined = self.combine(first, patches)
        if combined.ndim != 2 or combined.shape[0] != len(tokens):
            shape = tuple(combined.shape)
            raise ShapeError(f"embedding {self.name} gave {shape}, expected ({len(tokens)}, width)")
        return combined


def _class(first: Tensor, patches: Tensor) -> Tensor:
    return first


def _class_and_mean(first: Tensor, patches: Tensor) -> Tensor:
    return first + patches.mean(dim=1)


def _unit_class_and_mean(first: Tensor, patches: Tensor) -> Tensor:
    return normalize(first, dim=-1) + normalize(patches, dim=-1).mean(dim=1)


_POOLED = "the library's own image embedding"
_DRAWN = "normalised class + mean of half as many drawn normalised patches, the sum not normalised"
_RULES = (
    ImageEmbedding("pooled", _POOLED),
    ImageEmbedding("class", "the first token, projected", _class),
    ImageEmbedding("official-openai", "class + mean of 76 drawn patches", _class_and_mean, lambda count: 76),
    ImageEmbedding(
        "official-metaclip", "normalised class + mean of all normalised patches", _unit_class_and_mean
    ),
    ImageEmbedding("official-dfn-224", "class", _class),
    ImageEmbedding("official-dfn-378", _DRAWN, _unit_class_and_mean, lambda count: count // 2, False),
    ImageEmbedding("official-siglip", _POOLED),
)
EMBEDDINGS = {rule.name: rule for rule in _RULES}


def image_embedding(embedding: str | Combine | ImageEmbedding) -> ImageEmbedding:
    """The embedding of that name, or one made of a function (see `Combine`).

    >>> image_embedding("official-openai").about
    'class + mean of 76 drawn patches'
    >>> image_embedding(lambda first, patches: patches.mean(1)).name
    '<lambda>'
    """
    if isinstance(embedding, ImageEmbedding):
        return embedding
    if callable(embedding):
        return ImageEmbedding(getattr(embedding, "__name__", "custom"), "a function", embedding)
    if not isinstance(embedding, str) or embedding not in EMBEDDINGS:
        near = hint(embedding, EMBEDDINGS) or f": known are {', '.join(EMBEDDINGS)}"
        raise ConfigError(f"embedding={shown(embedding)} is not known{near}")
    return EMBEDDINGS[embedding]


def library_embedding(model: nn.Module, tower: Tower | None, pixels: Tensor) -> Tensor:
    """(B, D): the image embedding as the model's own library gives it.

    ``tower`` serves models that have no method for it (the vision part alone).
    """
    m: Any = model
    if hasattr(model, "get_image_features"):
        features = pooled(m.get_image_features(pixel_values=pixels))
    elif hasattr(model, "encode_image"):
        features = m.encode_image(pixels)
    elif tower is not None:
        features = tower.embed(tower.tokens(pixels))
    else:
        raise ConfigError(f"{type(model).__name__} has neither encode_image nor get_image_features")
    # open_clip's pool_type="none" projects the whole sequence; its first row is the class token.
    return features[:, 0] if features.ndim == 3 else features


def pooled(features: Any) -> Tensor:
    """The tensor in what transformers returns: a tensor up to 4.x, an output with `pooler_output` later."""
    if isinstance(features, Tensor):
        return features
    found: Tensor = features.pooler_output if hasattr(features, "pooler_output") else features[1]
    return found


def _chosen(patches: Tensor, count: int, ids: Sequence[int], seed: int) -> Tensor:
    """``count`` of each image's patches, drawn with replacement by (seed, id): (B, P, D) -> (B, count, D)."""
    drawn = draw(seed, ids, 1, (1,), patches.shape[1], count, replacement=True).tokens
    index = torch.as_tensor(drawn[:, 0], device=patches.device)  # (B, count)
    return patches.gather(1, index.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
