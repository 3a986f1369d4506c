"""Any supported CLIP behind one pair of methods, with the transform and the tokenizer that belong to it."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from diva_rs.clip import Tower, adapt
from diva_rs.data.augment import image_pixels
from diva_rs.errors import ConfigError
from diva_rs.evaluation.embeddings import Combine, ImageEmbedding, image_embedding, library_embedding, pooled
from diva_rs.evaluation.measures import device_of

Tokens = Any
"""A tensor (B, length) of token ids, or what a transformers tokenizer returns."""


class Embedder:
    """Images and texts to vectors, for a model of any library; what clip-benchmark calls a model.

    Args:
        clip: a model of open_clip, transformers (CLIP, MetaCLIP 2, SigLIP) or OpenAI's `clip`, or anything
            with ``encode_image`` and ``encode_text``.
        preprocess: PIL image -> (3, H, W), or a transformers processor; for scoring, not for training.
        tokenizer: texts -> token ids (open_clip's, OpenAI's `clip.tokenize`), or a transformers tokenizer or
            processor.
        embedding: a name of `EMBEDDINGS`, or a function of the projected first token and patches.
        seed: of the drawn patches, if the embedding draws any.

    >>> embedder = Embedder(clip, preprocess, tokenizer)
    >>> embedder.encode_text(embedder.tokenize(["a photo of a cat"])).shape
    torch.Size([1, 32])
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
        self.tokenize = text_tokenizer(tokenizer, clip)
        self.embedding = image_embedding(embedding)
        self.seed = seed
        self.device = device_of(clip)
        self._tower: Tower | None = None
        if not hasattr(clip, "encode_text") and not hasattr(clip, "get_text_features"):
            raise ConfigError(
                f"{type(clip).__name__} has no text tower, and images are scored against texts: load the "
                "full model (CLIPModel, SiglipModel, an open_clip model)"
            )
        if self.embedding.combine is not None:
            self._tower = adapt(clip, training=False)

    def encode_image(self, pixels: Tensor, ids: Sequence[int] = ()) -> Tensor:
        """(B, 3, H, W) as `transform` makes them -> (B, D), before L2 normalisation; ``ids`` key draws."""
        if self._tower is None:
            own = next(self.model.parameters(), pixels) if isinstance(self.model, nn.Module) else pixels
            return library_embedding(self.model, None, pixels.to(own.dtype))
        ids = ids if len(ids) else range(len(pixels))
        return self.embedding.of_tokens(self._tower, self._tower.tokens(pixels), ids, self.seed)

    def encode_text(self, tokens: Tokens) -> Tensor:
        """What `tokenize` gives, on the model's device -> (B, D), before L2 normalisation."""
        named = {"input_ids": tokens} if isinstance(tokens, Tensor) else dict(tokens)
        if not hasattr(self.model, "get_text_features"):
            return self.model.encode_text(named["input_ids"])  # type: ignore[no-any-return]
        if "siglip" in str(getattr(self.model.config, "model_type", "")):
            named.pop("attention_mask", None)  # SigLIP is trained on padded texts without a mask
        return pooled(self.model.get_text_features(**named))


def image_transform(preprocess: Any) -> Callable[[Any], Tensor]:
    """PIL image -> (3, H, W), from a torchvision-style transform or a transformers processor.

    One that draws random numbers is a ConfigError: no two runs would agree.
    """
    random = [name for name in _names(preprocess) if name.startswith("Random")]
    if random:
        raise ConfigError(
            f"preprocess draws random numbers ({random[0]}): it is the transform for training; the one for "
            "scoring is the third value of open_clip.create_model_and_transforms"
        )

    def transform(image: Any) -> Tensor:
        pixels = preprocess(image)
        # Integers would be cast later on and scored as if they were normalised.
        return image_pixels(pixels, "preprocess", "give the model's own transform")

    def process(image: Any) -> Tensor:
        processor = getattr(preprocess, "image_processor", preprocess)
        pixels: Tensor = processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"]
        return pixels[0]

    return process if _of_transformers(preprocess) else transform


def text_tokenizer(tokenizer: Any, clip: nn.Module) -> Callable[[Sequence[str]], Tokens]:
    """Texts -> token ids; transformers tokenizers pad to the model's length, as their models were trained."""
    if _of_transformers(tokenizer):
        own = getattr(tokenizer, "tokenizer", tokenizer)
        config = getattr(getattr(clip, "config", None), "text_config", None)
        length = getattr(config, "max_position_embeddings", 77)
        padded = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
        return lambda texts: own(list(texts), **padded)
    return lambda texts: tokenizer(list(texts))


def _of_transformers(value: Any) -> bool:
    return any(cls.__module__.startswith("transformers.") for cls in type(value).__mro__)


def _names(transform: Any) -> list[str]:
    """Class names of a transform and of those that it is composed of."""
    parts = getattr(transform, "transforms", None)
    inner = parts if isinstance(parts, (list, tuple)) else []
    return [type(transform).__name__, *(name for part in inner for name in _names(part))]
