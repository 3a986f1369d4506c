"""Reading of what a loader yields into one shape: ``Batch(images, pixel_values, latents, ids)``."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diva_rs._base.tensors import described, is_dense
from diva_rs.data.checks import Ids, check_shape
from diva_rs.errors import ConfigError, DataError, ShapeError, a_type, shown


@dataclass(frozen=True)
class Batch:
    """One batch of B images, as tensors with the batch first.

    images        (B, 3, H, W) in the convention that the recipe's ``pixels`` declares: the source of CLIP's
                  and the VAE's inputs.
    pixel_values  (B, 3, h, w) ready for CLIP. Without ``images`` and ``latents`` they are un-normalised for
                  the VAE, at CLIP's resolution.
    latents       (B, C, h, w) already scaled: the VAE does not run.
    ids           B sample ids (integers or strings) that key the draws. None: the position in the run does.
    augmented     (B, 3, H', W') augmented views for recipes with ``contrast``, in the convention of
                  ``images``, or ready for CLIP where there are none. None: they are made of the images.

    >>> batch = Batch(images=torch.zeros(4, 3, 8, 8), ids=[3, 1, 4, 1])
    >>> len(batch), batch[1:3].ids
    (4, [1, 4])
    """

    images: Tensor | None = None
    pixel_values: Tensor | None = None
    latents: Tensor | None = None
    ids: Ids | None = None
    augmented: Tensor | None = None

    def __len__(self) -> int:
        parts = (self.images, self.pixel_values, self.latents)
        return next((len(part) for part in parts if part is not None), 0)

    def __getitem__(self, part: slice) -> "Batch":
        return Batch(**{key: None if value is None else value[part] for key, value in vars(self).items()})

    def source(self, pixels: str) -> tuple[Tensor, str]:
        """The source of the VAE's input, and its convention: ``pixel_values`` are always ``"clip"``."""
        if self.images is not None:
            return self.images, pixels
        if self.pixel_values is not None:
            return self.pixel_values, "clip"
        raise DataError("the batch holds neither images nor pixel_values")

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Batch":
        """The batch on another device. A copy to CUDA goes through pinned memory and does not block."""
        there = torch.device(device)
        fast = there.type == "cuda"
        return self.pinned(there)._each(lambda part: part.to(there, dtype or part.dtype, non_blocking=fast))

    def pinned(self, device: torch.device) -> "Batch":
        """The batch in pinned memory if it is to be copied from the CPU to CUDA; otherwise as it is."""
        if device.type != "cuda":
            return self
        return self._each(lambda part: part.pin_memory() if part.device.type == "cpu" else part)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        tensors = {key: part for key, part in vars(self).items() if key != "ids" and part is not None}
        return replace(self, **{key: change(part) for key, part in tensors.items()})


_KEYS = tuple(field.name for field in fields(Batch))


def read_batch(item: Any, number: int | None = None) -> Batch:
    """Read what a loader yielded; ``number`` is the batch's number, for messages.

    Accepted: a tensor or NumPy array of images (B, 3, H, W); a tuple or list whose first entry is one (labels
    after it are ignored); a mapping with ``images`` or ``pixel_values``, and optionally ``latents`` and
    ``ids`` (other keys are ignored). Raises DataError for anything else, ShapeError for a part of a wrong
    shape, dtype or length.

    >>> len(read_batch((torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))))
    2
    >>> read_batch({"pixels": torch.zeros(2, 3, 8, 8)}, number=5)
    Traceback (most recent call last):
    diva_rs.errors.DataError: batch 5 is a dict with the keys 'pixels': 'images' or 'pixel_values' is needed
    """
    where = "the batch" if number is None else f"batch {number}"
    if isinstance(item, Mapping):
        item = _from_mapping(item, where)
    elif not isinstance(item, Batch):
        labelled = isinstance(item, (tuple, list)) and item and getattr(item[0], "ndim", 0) == 4
        item = Batch(images=_tensor(item[0] if labelled else item, where))
    _check(item, where, number)
    return item  # type: ignore[no-any-return]


def check_loader(loader: Any) -> None:
    """Raise DataError or ConfigError for what cannot be a loader of batches."""
    if isinstance(loader, (Tensor, np.ndarray)):  # its rows would be read as batches
        raise DataError(f"loader is one array {described(loader)}: give an iterable of batches: [images]")
    if isinstance(loader, (str, os.PathLike)):
        raise ConfigError(f"loader is a path: give diva_rs.data.folder_loader({shown(str(loader))})")
    if isinstance(loader, (Mapping, Batch)) or not isinstance(loader, Iterable):
        kind = a_type(loader)
        raise ConfigError(f"loader is {kind}: give an iterable of image batches, e.g. a DataLoader or a list")


def _from_mapping(item: Mapping[Any, Any], where: str) -> Batch:
    found = {key: item[key] for key in _KEYS if key in item and item[key] is not None}
    if "images" in found or "pixel_values" in found:
        ids = found.pop("ids", None)
        return Batch(ids=ids, **{key: _tensor(value, f"{where}: {key!r}") for key, value in found.items()})
    if isinstance(item.get("bad"), (list, tuple)) and not found:
        raise DataError(f"{where} is empty: every image of it is bad: {', '.join(map(str, item['bad']))}")
    if "latents" in found:
        raise DataError(f"{where} holds latents alone, which cannot feed CLIP: add 'images'")
    kind = f"{a_type(item)} with the keys {', '.join(shown(key) for key in islice(item, 20)) or 'none'}"
    near = next((key for key in ("image", "img", "jpg", "png", "x") if key in item), None)
    hint = f"; rename {near!r} in the collate function" if near else ""
    raise DataError(f"{where} is {kind}: 'images' or 'pixel_values' is needed{hint}")


def _tensor(value: Any, what: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        try:
            # A read-only array (a memory map, a JAX buffer) must not become a tensor that can write to it,
            # and torch has no negative strides.
            plain = value.flags.writeable and min(value.strides, default=0) >= 0
            return torch.from_numpy(value if plain else value.copy())
        except (TypeError, ValueError) as err:
            raise ShapeError(f"{what} is an array of {value.dtype}, floating numbers are needed") from err
    kind = a_type(value)
    if isinstance(value, (list, tuple)):
        kind += f" of {type(value[0]).__name__ if value else 'nothing'}"
    raise DataError(
        f"{what} is {kind}: a loader yields a tensor (B, 3, H, W), a tuple (images, ...), or a dict with "
        "'images' or 'pixel_values'. torch.utils.data.default_collate stacks samples, "
        "diva_rs.data.unit_tensor converts a PIL image, and diva_rs.data.folder_loader reads files"
    )


def _check(batch: Batch, where: str, number: int | None) -> None:
    """Raise ShapeError for parts of a wrong shape, and for parts of different lengths."""
    for key in ("images", "pixel_values", "augmented"):
        if getattr(batch, key) is not None:
            check_shape(getattr(batch, key), key, number)
    latents, ids = batch.latents, batch.ids
    if latents is not None and (latents.ndim != 4 or 0 in latents.shape or not latents.is_floating_point()):
        raise ShapeError(f"{where}: latents is {described(latents)}, floating (B, C, h, w) is needed")
    listed = hasattr(ids, "__len__") and not isinstance(ids, (str, bytes))
    if isinstance(ids, (Tensor, np.ndarray)):
        listed = (is_dense(ids) or isinstance(ids, np.ndarray)) and ids.ndim == 1
    if ids is not None and not listed:
        raise ShapeError(f"{where}: ids must be a sequence of one integer or string per sample")
    for key in ("pixel_values", "augmented", "latents", "ids"):
        part = getattr(batch, key)
        if part is not None and len(part) != len(batch):
            raise ShapeError(f"{where}: {len(part)} {key} for {len(batch)} samples: one per sample is needed")
