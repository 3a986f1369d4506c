"""How far the image embeddings have moved: the first sign of what post-training costs, without any label.

Linear CKA: Kornblith et al., arXiv 1905.00414, equation 5 with a linear kernel in its feature form.
"""

from typing import Any

from torch import Tensor, nn

from diva_rs._base.arguments import checked, takes
from diva_rs._base.kinds import dense
from diva_rs.errors import ConfigError, ShapeError
from diva_rs.evaluation.features import image_features
from diva_rs.evaluation.scores import DriftResult

_ROWS = dense(values=True)


def drift(before: Any, after: Any, images: Any = None, features: str = "pooled") -> DriftResult:
    """Compare the embeddings of the same images by two models.

    Training changes a model in place, so keep the original's embeddings (`image_features`) or a copy of its
    tower (``diva_rs.clip.adapt(clip).frozen_copy()``).

    Args:
        before, after: embeddings (N, D), or a model or `Tower`, which then embeds ``images``.
        images: as for `image_features`; an iterable is gone through once for each model.
        features: as for `image_features`.

    Raises:
        ShapeError: embeddings that are not two (N, D) of the same N and D.
        ConfigError: a model without ``images``.

    >>> from diva_rs.evaluation import image_features
    >>> images = torch.randn(4, 3, 32, 32)
    >>> print(drift(image_features(clip, images), clip, images))
    drift over 4 images: mean cosine 1.0000, lowest 1.0000, linear CKA 1.0000
    """
    both = (("before", before), ("after", after))
    old, new = (_embeddings(name, given, images, features) for name, given in both)
    if old.ndim != 2 or old.shape != new.shape or len(old) == 0:
        raise ShapeError(
            f"embeddings before are {tuple(old.shape)}, after {tuple(new.shape)}: two (N, D) expected"
        )
    old, new = old.double(), new.double()
    cosines = nn.functional.cosine_similarity(old, new, dim=1)
    return DriftResult(
        cosine=float(cosines.mean()),
        lowest=float(cosines.min()),
        cka=linear_cka(old, new),
        cosines=tuple(cosines.tolist()),
    )


@takes(first=_ROWS, second=_ROWS)
def linear_cka(first: Tensor, second: Tensor) -> float:
    """Linear centred kernel alignment of (N, D1) and (N, D2) features of the same items, in [0, 1].

    1 where one is a rotated and scaled copy of the other. 1.0 as well where neither varies over the items,
    0.0 where only one does.

    Raises:
        ShapeError: not two matrices with the same number of rows.

    >>> x = torch.randn(50, 3, dtype=torch.float64)
    >>> round(linear_cka(x, 2 * x.flip(1) + 5), 6)
    1.0
    """
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second) or len(first) == 0:
        raise ShapeError(
            f"features are {tuple(first.shape)} and {tuple(second.shape)}: two matrices of N rows"
        )
    x, y = (values.double() - values.double().mean(dim=0) for values in (first, second))
    spread = float((x.T @ x).norm() * (y.T @ y).norm())
    if spread == 0:
        return float(bool(x.any()) == bool(y.any()))
    return float((y.T @ x).square().sum()) / spread


def _embeddings(name: str, given: Any, images: Any, features: str) -> Tensor:
    if isinstance(given, Tensor):
        rows: Tensor = checked(name, given, _ROWS)
        return rows.detach().cpu()
    if images is None:
        raise ConfigError("drift of a model needs images: give them, or embeddings made by image_features")
    return image_features(given, images, features)
