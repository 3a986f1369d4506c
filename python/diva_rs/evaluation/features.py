"""Features of images, straight from the tower: for probes and drift, of vision-only models as well."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs._base.arguments import checked, described, refused_by
from diva_rs._base.kinds import tensor
from diva_rs.clip import Tower, adapt
from diva_rs.errors import ConfigError, DataError, shown
from diva_rs.evaluation.embeddings import library_embedding
from diva_rs.evaluation.mode import device_of, evaluating

_PIXELS = tensor("(B, 3, H, W)")

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

    Raises:
        ConfigError: unknown features, or a model without a vision tower.
        DataError: a batch of another kind, or no image at all.

    >>> image_features(clip, torch.randn(3, 3, 32, 32), "patches").shape
    torch.Size([3, 32])
    """
    return collect(clip, ((pixels, None) for pixels in _batches(images)), (features,))[0][features]


def collect(
    clip: Any, batches: Iterable[tuple[Tensor, Any]], features: Iterable[str]
) -> tuple[dict[str, Tensor], list[Any]]:
    """Several kinds of features in one pass, and what came with each batch.

    Raises as :func:`image_features`.
    """
    names = list(features)
    unknown = [name for name in names if not isinstance(name, str) or name not in FEATURES]
    if unknown or not names:
        raise ConfigError(f"features={shown(unknown or names)}: known are {', '.join(FEATURES)}")
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    told: list[Any] = []
    given = clip.module if isinstance(clip, Tower) else clip
    with evaluating(given) as model:
        tower = clip.rebuild(model) if isinstance(clip, Tower) else adapt(model, training=False)
        for pixels, extra in batches:
            with refused_by(type(model).__name__, f"images {described(pixels)}"):
                pixels = pixels.to(device_of(model), next(model.parameters()).dtype)
                rows_of = _features(model, tower, pixels, names)
            for name, rows in rows_of.items():
                found[name].append(rows.float().cpu())
            told.append(extra)
    if not told:
        raise DataError("images: there is not a single batch")
    return {name: torch.cat(rows) for name, rows in found.items()}, told


def _features(model: nn.Module, tower: Tower, pixels: Tensor, names: list[str]) -> dict[str, Tensor]:
    rows: dict[str, Tensor] = {}
    if names != ["pooled"]:
        tokens = tower.tokens(pixels)
        tokens = tokens if tower.norm is None else tower.norm(tokens)
        rows = {"class": tokens[:, 0], "patches": tokens[:, 1:].mean(dim=1)}
    if "pooled" in names:
        rows["pooled"] = library_embedding(model, tower, pixels)
    return {name: rows[name] for name in names}


def _batches(images: Any) -> Iterator[Tensor]:
    if isinstance(images, Tensor):
        yield from torch.split(checked("images", images, _PIXELS), _BATCH)
        return
    if not isinstance(images, Iterable):
        raise DataError(f"images={described(images)}: a tensor (B, 3, H, W) or batches of them are needed")
    for batch in images:
        yield pixels_of(batch)


def pixels_of(batch: Any) -> Tensor:
    """The pixels of a batch: itself, its first part, or its ``pixel_values``.

    >>> pixels_of((torch.zeros(2, 3, 4, 4), [0, 1])).shape
    torch.Size([2, 3, 4, 4])
    """
    value = batch
    if isinstance(batch, Mapping):
        value = batch.get("pixel_values")
    elif isinstance(batch, (tuple, list)) and batch:
        value = batch[0]
    if not isinstance(value, Tensor):
        raise DataError(
            f"images: a batch is a {type(batch).__name__} without pixels: a tensor (B, 3, H, W) made by the "
            "model's own transform is needed, alone, first in a tuple, or as pixel_values of a dict"
        )
    pixels: Tensor = checked("images", value, _PIXELS)
    return pixels
