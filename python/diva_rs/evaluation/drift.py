"""How far the image embeddings have moved: the first sign of what post-training costs, without any label.

Linear CKA: Kornblith et al., arXiv 1905.00414, equation 5 with a linear kernel in its feature form.
"""

from typing import Any

from torch import Tensor, nn

from diva_rs.errors import ConfigError, ShapeError
from diva_rs.evaluation.features import image_features
from diva_rs.evaluation.scores import DriftResult


def drift(before: Any, after: Any, images: Any = None, features: str = "pooled") -> DriftResult:
    """Compare the embeddings of the same images by two models.

    ``before`` and ``after`` are embeddings (N, D), or a model or `Tower`, which embeds ``images`` as
    `image_features` does; an iterable is read once for each model. Training changes a model in place, so keep
    the original's embeddings or a copy of its tower (``diva_rs.clip.adapt(clip).frozen_copy()``).

    >>> from diva_rs.evaluation import image_features
    >>> images = torch.randn(4, 3, 32, 32)
    >>> print(drift(image_features(clip, images), clip, images))
    drift over 4 images: mean cosine 1.0000, lowest 1.0000, linear CKA 1.0000
    """
    old, new = (_embeddings(given, images, features) for given in (before, after))
    if old.ndim != 2 or old.shape != new.shape or len(old) == 0:
        shapes = f"before are {tuple(old.shape)}, after {tuple(new.shape)}"
        raise ShapeError(f"embeddings {shapes}: two (N, D) expected")
    cosines = nn.functional.cosine_similarity(old, new, dim=1)
    mean, lowest = float(cosines.mean()), float(cosines.min())
    return DriftResult(mean, lowest, linear_cka(old, new), tuple(cosines.tolist()))


def _embeddings(given: Any, images: Any, features: str) -> Tensor:
    if isinstance(given, Tensor):
        return given.detach().cpu().double()
    if images is None:
        raise ConfigError("drift of a model needs images: give them, or embeddings made by image_features")
    return image_features(given, images, features).double()


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Linear centred kernel alignment of (N, D1) and (N, D2) features of the same items, in [0, 1].

    1 if one is a rotated and scaled copy of the other, or if neither varies over the items; 0 if only one of
    the two varies.

    >>> x = torch.randn(50, 3, dtype=torch.float64)
    >>> round(linear_cka(x, 2 * x.flip(1) + 5), 6)
    1.0
    """
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second) or len(first) == 0:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ShapeError(f"features are {shapes}: two matrices of N rows are needed")
    x, y = (values.double() - values.double().mean(dim=0) for values in (first, second))
    spread = float((x.T @ x).norm() * (y.T @ y).norm())
    if spread == 0:
        return float(bool(x.any()) == bool(y.any()))
    return float((y.T @ x).square().sum()) / spread


class Drift:
    """A metric: the mean cosine, in [-1, 1], between a model's image embeddings and the original's.

    Create it before training, with the original model, of which only the embeddings are kept; 1 is no drift.
    ``images`` and ``features`` are as for `image_features`; a list is kept, an iterator is read once.

    >>> metric = diva_rs.evaluation.Drift(clip, torch.randn(4, 3, 32, 32))
    >>> round(metric(clip), 6)
    1.0
    """

    def __init__(self, clip: nn.Module, images: Any, features: str = "pooled") -> None:
        self.images = images if isinstance(images, (Tensor, list, tuple)) else list(images)
        self.features = features
        self.original = image_features(clip, self.images, features)

    def __call__(self, clip: nn.Module) -> float:
        """The score of ``clip``."""
        return drift(self.original, clip, self.images, self.features).cosine
