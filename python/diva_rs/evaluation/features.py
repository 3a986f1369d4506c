"""Features of images, straight from the tower: for probes and drift, of vision-only models as well."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from diva_rs.clip import Tower, adapt
from diva_rs.errors import ConfigError, DataError, a_type, shown
from diva_rs.evaluation.embeddings import library_embedding
from diva_rs.evaluation.measures import device_of, evaluating

FEATURES = ("pooled", "class", "patches")
_BATCH = 64


def image_features(clip: Any, images: Any, features: str = "pooled") -> Tensor:
    """Features of every image, (N, D) or (N, W) float32 on the CPU, in eval mode and float32.

    Args:
        clip: a full or vision-only model of any supported library, or a `Tower` (for example the
            ``frozen_copy()`` taken before training).
        images: (N, 3, H, W) pixels made by the model's own transform, or an iterable of such batches; a batch
            may also be a tuple with the pixels first, or a dict with ``pixel_values``.
        features: "pooled": the library's image embedding (D); "class": the first token after the last norm,
            before the projection (W); "patches": the mean of the patch tokens, likewise (W).

    >>> image_features(clip, torch.randn(3, 3, 32, 32), "patches").shape
    torch.Size([3, 32])
    """
    batches = torch.split(images, _BATCH) if isinstance(images, Tensor) else images
    return collect(clip, ((pixels_of(batch), None) for batch in batches), (features,))[0][features]


def collect(
    clip: Any, batches: Iterable[tuple[Tensor, Any]], features: Iterable[str]
) -> tuple[dict[str, Tensor], list[Any]]:
    """Several kinds of features in one pass, and the second part of each batch."""
    names = list(features)
    unknown = [name for name in names if name not in FEATURES]
    if unknown or not names:
        raise ConfigError(f"features={shown(unknown or names)}: known are {', '.join(FEATURES)}")
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
    """The pixels of a batch: itself, its first part, or its ``pixel_values``.

    Other than floating point is a DataError: bytes would be scored as if they were normalised.
    """
    value = batch
    if isinstance(batch, Mapping):
        value = batch.get("pixel_values")
    elif isinstance(batch, (tuple, list)) and batch:
        value = batch[0]
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = f"{value.dtype} pixels" if isinstance(value, Tensor) else f"{a_type(batch)} without pixels"
        raise DataError(
            f"images: a batch is {got}: a floating-point tensor (B, 3, H, W) from the model's own transform "
            "is needed, alone, first in a tuple, or as pixel_values of a dict"
        )
    return value
