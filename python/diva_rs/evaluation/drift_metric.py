"""Drift as a metric: a function of the model, for evaluation during training and for sweeps."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from diva_rs._base.arguments import described
from diva_rs.errors import DataError
from diva_rs.evaluation.drift import drift
from diva_rs.evaluation.features import image_features


class Drift:
    """A metric: the mean cosine, in [-1, 1], between a model's image embeddings and the original's.

    Make it before training; 1 is no drift.

    Args:
        clip: the original model; its embeddings are computed now and kept, not the model.
        images: (N, 3, H, W), normalised for CLIP, or batches of them: see `evaluation.image_features`.
            A list is kept, an iterator is read once.
        features: "pooled", "class" or "patches".

    >>> metric = diva_rs.evaluation.Drift(clip, torch.randn(4, 3, 32, 32))
    >>> round(metric(clip), 6)
    1.0
    """

    def __init__(self, clip: nn.Module, images: Any, features: str = "pooled") -> None:
        if not isinstance(images, Iterable):
            raise DataError(f"images={described(images)}: a tensor (N, 3, H, W) or batches are needed")
        # An object's own length may be a lie: only its iterator is asked.
        self.images = images if isinstance(images, (Tensor, list, tuple)) else list(iter(images))
        self.features = features
        self.original = image_features(clip, self.images, features)

    def __call__(self, clip: nn.Module) -> float:
        """The score of ``clip``."""
        return drift(self.original, clip, self.images, self.features).cosine
