"""Any supported CLIP behind one pair of methods, and which vector stands for an image.

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
from diva_rs.clip import Tower, adapt
from diva_rs.errors import ConfigError, DataError, ShapeError, shown
from diva_rs.evaluation.image_side import OWN, check_scale, image_transform
from diva_rs.evaluation.measures import device_of
from diva_rs.evaluation.text_side import TextSide, Tokens
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
            count = self.choose(patches.shape[1])
            drawn = draw(seed, ids, 1, (1,), patches.shape[1], count, replacement=True).tokens
            index = torch.as_tensor(drawn[:, 0], device=patches.device)  # (B, count)
            patches = patches.gather(1, index.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
        combined = self.combine(first, patches)
        if combined.ndim != 2 or len(combined) != len(tokens):
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
    """(B, D): the image embedding of the model's own library; of ``tower`` for a vision part alone."""
    m: Any = model
    if hasattr(model, "get_image_features"):
        features = pooled(m.get_image_features(pixel_values=pixels))
    elif hasattr(model, "encode_image"):
        features = m.encode_image(pixels)
    elif tower is not None:
        features = tower.embed(tower.tokens(pixels))
    else:
        raise ConfigError(f"{type(model).__name__} has neither encode_image nor get_image_features")
    found: Tensor = first_of(features)
    # open_clip's pool_type="none" projects the whole sequence; its first row is the class token.
    return found[:, 0] if found.ndim == 3 else found


def first_of(features: Any) -> Any:
    """The embedding where a tower of open_clip gives its tokens as well (``output_tokens``)."""
    return features[0] if isinstance(features, (tuple, list)) else features


def pooled(features: Any) -> Tensor:
    """The tensor in what transformers returns: a tensor up to 4.x, an output with `pooler_output` later."""
    if isinstance(features, Tensor):
        return features
    found: Tensor = features.pooler_output if hasattr(features, "pooler_output") else features[1]
    return found


class Embedder:
    """Images and texts to vectors, for a model of any library; what clip-benchmark calls a model.

    ``clip`` is a model of open_clip, transformers (CLIP, MetaCLIP 2, SigLIP) or OpenAI's `clip`, or anything
    with ``encode_image`` and ``encode_text``. The other arguments are those of `mmvp_vlm`.

    >>> clip, preprocess, tokenizer = diva_rs.microworld.example("clip", "preprocess", "tokenizer")
    >>> embedder = Embedder(clip, preprocess, tokenizer)
    >>> embedder.encode_text(embedder.tokenize(["a photo of a fish"])).shape
    torch.Size([1, 64])
    """

    def __init__(
        self,
        clip: Any,
        preprocess: Any,
        tokenizer: Any,
        embedding: str | Combine | ImageEmbedding = "pooled",
        seed: int = 0,
    ) -> None:
        self.model: Any = clip
        self.transform = image_transform(preprocess)
        check_scale(self.transform, clip)
        self.tokenize = TextSide.of(clip).checked(tokenizer)
        self.embedding = image_embedding(embedding)
        self.seed = seed
        self.device = device_of(clip)
        self._tower: Tower | None = None
        check_text_tower(clip)
        if self.embedding.combine is not None:
            self._tower = adapt(clip, training=False)

    def encode_image(self, pixels: Tensor, ids: Sequence[int] = ()) -> Tensor:
        """(B, 3, H, W) as `transform` makes them -> (B, D), before L2 normalisation; ``ids`` key draws."""
        if self._tower is None:
            own = next(self.model.parameters(), pixels) if isinstance(self.model, nn.Module) else pixels
            try:
                return library_embedding(self.model, None, pixels.to(own.dtype))
            except Exception as err:
                self._check_shape(pixels, err)
                raise
        ids = ids if len(ids) else range(len(pixels))
        return self.embedding.of_tokens(self._tower, self._tower.tokens(pixels), ids, self.seed)

    def _check_shape(self, pixels: Tensor, err: Exception) -> None:
        """Raise ConfigError if ``err`` comes of images that the model does not take."""
        try:
            needed = (3, *adapt(self.model, training=False).image_size)
        except ConfigError:  # a model of another library
            return
        if pixels.shape[1:] != needed:
            given = tuple(pixels.shape[1:])
            raise ConfigError(f"preprocess gives images {given}, the model takes {needed}: {OWN}") from err

    def encode_text(self, tokens: Tokens) -> Tensor:
        """What `tokenize` gives, on the model's device -> (B, D), before L2 normalisation."""
        return text_embedding(self.model, tokens)


class FiniteEmbedder(Embedder):
    """As `Embedder`; DataError for an embedding that is not finite: argmax takes NaN for the largest."""

    def encode_image(self, pixels: Tensor, ids: Sequence[int] = ()) -> Tensor:
        return _finite(super().encode_image(pixels, ids), "an image")

    def encode_text(self, tokens: Tokens) -> Tensor:
        return _finite(super().encode_text(tokens), "a text")


def _finite(rows: Tensor, what: str) -> Tensor:
    if not bool(rows.isfinite().all()):
        raise DataError(f"the model's embedding of {what} is not finite: its training diverged")
    return rows


def text_embedding(model: Any, tokens: Tokens) -> Tensor:
    """What a tokenizer gives, on the model's device -> (B, D), before L2 normalisation."""
    named = {"input_ids": tokens} if isinstance(tokens, Tensor) else dict(tokens)
    if not hasattr(model, "get_text_features"):
        return first_of(model.encode_text(named["input_ids"]))  # type: ignore[no-any-return]
    if "siglip" in str(getattr(model.config, "model_type", "")):
        named.pop("attention_mask", None)  # SigLIP is trained on padded texts without a mask
    return pooled(model.get_text_features(**named))


def check_text_tower(model: Any) -> None:
    """Raise ConfigError for a model that embeds no texts."""
    if not hasattr(model, "encode_text") and not hasattr(model, "get_text_features"):
        raise ConfigError(f"{type(model).__name__} has no text tower: load the full model (e.g. CLIPModel)")
