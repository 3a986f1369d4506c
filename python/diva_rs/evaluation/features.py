"""Features of images, straight from the tower, and how far they have moved: the first sign of a cost."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs.clip import Tower, adapt
from diva_rs.errors import ConfigError, DataError, ShapeError, a_type, shown
from diva_rs.evaluation.embedder import library_embedding
from diva_rs.evaluation.measures import device_of, evaluating
from diva_rs.evaluation.scores import DriftResult

FEATURES = ("pooled", "class", "patches")
_BATCH = 64


def image_features(clip: Any, images: Any, features: str = "pooled") -> Tensor:
    """Features of every image, (N, D) or (N, W) float32 on the CPU, in eval mode and float32.

    ``clip`` is a full or vision-only model of any supported library, or a `Tower`; ``images`` are
    (N, 3, H, W) pixels made by the model's own transform, or an iterable of such batches, each alone, first
    in a tuple, or the ``pixel_values`` of a dict. ``features`` are "pooled": the library's image embedding
    (D); "class": the first token after the last norm, before the projection (W); or "patches": the mean of
    the patch tokens, likewise (W).

    >>> clip, teacher, images = diva_rs.microworld.example()
    >>> image_features(clip, (images - 0.5) / 0.25, "patches").shape
    torch.Size([8, 96])
    """
    batches = torch.split(images, _BATCH) if isinstance(images, Tensor) else images
    return collect(clip, ((pixels_of(batch), None) for batch in batches), (features,))[0][features]


def collect(
    clip: Any, batches: Iterable[tuple[Tensor, Any]], features: Iterable[str]
) -> tuple[dict[str, Tensor], list[Any]]:
    """Several kinds of features in one pass, and the second part of each batch."""
    names = list(features)
    if not names or not set(names) <= set(FEATURES):
        raise ConfigError(f"features={shown(names)}: known are {', '.join(FEATURES)}")
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    extras: list[Any] = []
    given = clip.module if isinstance(clip, Tower) else clip
    with evaluating(given) as model:
        tower = clip.rebuild(model) if isinstance(clip, Tower) else adapt(model, training=False)
        for pixels, extra in batches:
            pixels = pixels.to(device_of(model), next(model.parameters()).dtype)
            rows = {"pooled": library_embedding(model, tower, pixels)} if "pooled" in names else {}
            if names != ["pooled"]:
                tokens = tower.tokens(pixels)
                tokens = tokens if tower.norm is None else tower.norm(tokens)
                rows |= {"class": tokens[:, 0], "patches": tokens[:, 1:].mean(dim=1)}
            for name in names:
                found[name].append(rows[name].float().cpu())
            extras.append(extra)
    if not extras:
        raise DataError("images: there is not a single batch")
    return {name: torch.cat(parts) for name, parts in found.items()}, extras


def pixels_of(batch: Any) -> Tensor:
    """The pixels of a batch: itself, its first part, or its ``pixel_values``."""
    value = batch.get("pixel_values") if isinstance(batch, Mapping) else batch
    if isinstance(batch, (tuple, list)) and batch:
        value = batch[0]
    # Bytes would be scored as if they were normalised.
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = f"{value.dtype} pixels" if isinstance(value, Tensor) else f"{a_type(batch)} without pixels"
        raise DataError(f"images: a batch is {got}: a floating-point tensor (B, 3, H, W) is needed")
    return value


def drift(before: Any, after: Any, images: Any = None, features: str = "pooled") -> DriftResult:
    """Compare the embeddings of the same images by two models.

    ``before`` and ``after`` are embeddings (N, D), or a model or `Tower`, which embeds ``images`` as
    `image_features` does; an iterable is read once for each model. Training changes a model in place, so keep
    the original's embeddings or a copy of its tower (``diva_rs.clip.adapt(clip).frozen_copy()``).

    >>> clip, teacher, images = diva_rs.microworld.example()
    >>> from diva_rs.evaluation import image_features
    >>> print(drift(image_features(clip, images), clip, images))
    drift over 8 images: mean cosine 1.0000, lowest 1.0000, linear CKA 1.0000
    """
    if images is None and not (isinstance(before, Tensor) and isinstance(after, Tensor)):
        raise ConfigError("drift of a model needs images: give them, or embeddings made by image_features")
    sides = [x if isinstance(x, Tensor) else image_features(x, images, features) for x in (before, after)]
    old, new = (side.detach().cpu().double() for side in sides)
    if old.ndim != 2 or old.shape != new.shape or len(old) == 0:
        shapes = f"before are {tuple(old.shape)}, after {tuple(new.shape)}"
        raise ShapeError(f"embeddings {shapes}: two (N, D) expected")
    cosines = nn.functional.cosine_similarity(old, new, dim=1)
    mean, lowest = float(cosines.mean()), float(cosines.min())
    return DriftResult(mean, lowest, linear_cka(old, new), tuple(cosines.tolist()))


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Linear centred kernel alignment of (N, D1) and (N, D2) features of the same items, in [0, 1].

    1 if one is a rotated and scaled copy of the other, or if neither varies over the items; 0 if only one of
    the two varies. Kornblith et al., arXiv 1905.00414, equation 5 with a linear kernel in its feature form.

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

    >>> clip, teacher, images = diva_rs.microworld.example()
    >>> metric = diva_rs.evaluation.Drift(clip, images)
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
