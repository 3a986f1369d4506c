"""Latents of a fixed set of images: encoded once, then read from disk."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor
from tqdm.auto import tqdm

from diva_rs._base.files import beside, make_folder
from diva_rs.data.augment import Views
from diva_rs.data.batches import Batch, check_loader, read_batch
from diva_rs.data.checks import check_finite, check_images
from diva_rs.data.keys import sample_keys
from diva_rs.data.latent_store import (
    Store,
    StoreWriter,
    TeacherFacts,
    ViewFacts,
    content_hash,
    holds_store,
)
from diva_rs.data.loader import ImageLoader
from diva_rs.data.pixels import OPENAI_MEAN, OPENAI_STD, Three, vae_input
from diva_rs.errors import ConfigError, DataError, ShapeError, shown
from diva_rs.recipes.recipe import Recipe


class LatentCache:
    """Latents on disk, found by the content of the image that they were made from.

    A cache is valid for fixed views of each image only: the centre crop (``folder_loader(..., scale=None)``),
    or the crops and mirror images of ``folder_loader(..., views=Views(crops=4, flip=True))``, all of them
    cached. It never holds a new crop for every epoch. An image that was not cached with exactly these pixels
    raises an error. The cache also records the VAE (its configuration and a fingerprint of its encoder's
    weights) and how pixels were prepared for it.

    >>> import tempfile
    >>> class Halves:  # any object with `encode`, `describe`, and `image_size` or images of the right size
    ...     image_size = (8, 8)
    ...     def encode(self, images): return images[:, :, ::2, ::2]
    ...     def describe(self): return "every other pixel"
    >>> loader = [{"images": torch.rand(2, 3, 8, 8), "ids": [1, 2]}]
    >>> with tempfile.TemporaryDirectory() as root:
    ...     cache = LatentCache.build(loader, Halves(), root + "/latents")
    ...     [batch] = cache.wrap(loader)
    >>> len(cache), batch["latents"].shape, sorted(batch)
    (2, torch.Size([2, 3, 4, 4]), ['ids', 'images', 'latents'])
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    @classmethod
    def build(
        cls,
        loader: Iterable[Any],
        teacher: Any,
        folder: str | os.PathLike[str],
        recipe: Any = None,
        mean: Three = OPENAI_MEAN,
        std: Three = OPENAI_STD,
        dtype: Literal["float32", "float16"] = "float32",
        overwrite: bool = False,
    ) -> "LatentCache":
        """Encode every image of one pass over ``loader``, in all its views, and open the result.

        ``teacher.encode`` gets images in [-1, 1] of ``teacher.image_size``, made by the pixel fields of
        ``recipe`` (None: the defaults); ``mean`` and ``std`` are CLIP's own. ``dtype`` is the one on disk.
        The folder appears only when it is complete; an existing cache is replaced only with ``overwrite``.

        Raises DataError for bad pixels, an empty loader, latents that are not finite or an existing folder;
        ShapeError where ``encode`` gives another shape; ConfigError for a bad ``dtype`` or a recipe that
        samples latents.
        """
        recipe = _recipe(recipe)
        if dtype not in ("float32", "float16"):
            raise ConfigError(f"dtype={shown(dtype)} is unknown: one of 'float32', 'float16'")
        check_loader(loader)
        path = Path(folder).absolute()
        _check_place(path, overwrite)
        make_folder(path.parent)
        views = loader.views if isinstance(loader, ImageLoader) else None
        with beside(path) as place:
            place.mkdir()
            writer = StoreWriter(place, dtype)
            work = _Encoder(teacher, recipe, mean, std, writer)
            batches = loader.every_view() if isinstance(loader, ImageLoader) else loader
            for number, item in enumerate(tqdm(batches, desc="encode latents", unit="batch", disable=None)):
                work.add(read_batch(item, number), number)
            if writer.shape is None:
                raise DataError("the loader gave no image: there is nothing to cache")
            writer.finish(identity(teacher), work.view(), views)
        return cls.open(path)

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        teacher: Any = None,
        recipe: Any = None,
        mean: Three = OPENAI_MEAN,
        std: Three = OPENAI_STD,
    ) -> "LatentCache":
        """Open a cache; check that it was made by ``teacher`` and ``recipe`` where they are given.

        Raises DataError for a folder that is missing, incomplete or damaged, and for another VAE or other
        pixels, saying what differs.
        """
        store = Store(Path(folder).absolute())
        saved = store.facts
        if teacher is not None:
            now = identity(teacher).model_copy(update={"describe": saved.teacher.describe})
            _compare(store, "another VAE", saved.teacher, now)
        if recipe is not None:
            recipe = _recipe(recipe)
            size = _input_size(recipe, teacher) or saved.view.image_size
            view = _view(recipe, mean, std, size, saved.view.source, saved.view.resampled)
            _compare(store, "pixels prepared in another way", saved.view, view)
        return cls(store)

    def wrap(self, loader: Iterable[Any]) -> "CachedLoader":
        """The loader with cached ``latents`` (B, C, h, w) in every batch: training never runs the VAE.

        Yields ``dict(images and/or pixel_values, latents, ids)``. Raises DataError, naming batch, sample and
        id, for an image that is not in the cache or has other pixels.
        """
        check_loader(loader)
        return CachedLoader(self, loader)

    def latents(self, batch: Batch, number: int | None = None) -> Tensor:
        """The latents (B, C, h, w) of a batch's images, float32 on the CPU."""
        rows = self._store.rows(_contents(batch.source("unit")[0]))
        if (rows < 0).any():
            raise self._unknown(batch, int((rows < 0).argmax()), number)
        return self._store.read(rows)

    def __len__(self) -> int:
        return len(self._store)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (C, h, w) of each latent."""
        return self._store.facts.shape

    @property
    def views(self) -> Views | None:
        """The fixed views of each image that were cached; None: one view, or the views of a custom loader.

        Give them to the loader to wrap: ``folder_loader(..., views=cache.views)``.
        """
        return self._store.facts.views

    def describe(self) -> str:
        """One line: how many latents of which shape, made by what."""
        made_by = "; ".join(self._store.facts.teacher.describe.splitlines())
        return f"{len(self)} latents {self.shape} in {self._store.folder}, made by {made_by}"

    def __reduce__(self) -> Any:  # another process opens the files, it gets no copy
        return LatentCache.open, (self._store.folder,)

    def _unknown(self, batch: Batch, sample: int, number: int | None) -> DataError:
        where = f"sample {sample}" if number is None else f"batch {number}, sample {sample}"
        advice = f"add it by building {self._store.folder} again with overwrite=True"
        if batch.ids is None:
            return DataError(
                f"{where}: this image is not in the latent cache, or it had other pixels; {advice}"
            )
        key = sample_keys(batch.ids)[sample]
        if key not in self._store.ids:
            return DataError(f"{where} (id {key}): this image is not in the latent cache; {advice}")
        return DataError(
            f"{where} (id {key}): its pixels are not those that were cached. A latent cache holds fixed "
            "views of each image: load with views=cache.views, or the centre crop (scale=None) of a cache "
            "without views; or build the cache again"
        )


class CachedLoader:
    """A loader whose batches carry cached latents; its other attributes are the wrapped loader's."""

    def __init__(self, cache: LatentCache, loader: Iterable[Any]) -> None:
        self.cache, self.loader = cache, loader

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, item in enumerate(self.loader):
            batch = read_batch(item, number)
            parts = {"images": batch.images, "pixel_values": batch.pixel_values, "ids": batch.ids}
            parts["latents"] = self.cache.latents(batch, number)
            yield {key: value for key, value in parts.items() if value is not None}

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]  # TypeError where the loader has no length

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)  # set_epoch, batch_size, dataset, ...


def identity(teacher: Any) -> TeacherFacts:
    """What makes latents of an image: the VAE's configuration and a fingerprint of its encoder's weights.

    Weights are rounded to bf16 first, so that a cache made in float32 serves a run in bf16. A teacher that
    works on pixels has no VAE; an object without ``vae`` is identified by ``describe()``.
    """
    text = str(teacher.describe())
    if not hasattr(teacher, "vae"):
        return TeacherFacts(describe=text, config={}, weights=_hash(text.encode()))
    if teacher.vae is None:
        return TeacherFacts(describe=text, config={}, weights="none: works on pixels")
    parts = []
    for name, weight in sorted(teacher.vae.state_dict().items()):
        if not name.startswith(("decoder.", "post_quant_conv.")):
            rounded = weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16)
            parts.append(f"{name} {tuple(weight.shape)} {_hash(rounded.numpy().tobytes())}".encode())
    config = {key: value for key, value in dict(teacher.vae.config).items() if not key.startswith("_")}
    config = json.loads(json.dumps(config, default=str))
    return TeacherFacts(describe=text, config=config, weights=_hash(b"\n".join(parts)))


class _Encoder:
    """Encodes the images of batches that are new, and records how."""

    def __init__(self, teacher: Any, recipe: Any, mean: Three, std: Three, writer: StoreWriter) -> None:
        self.teacher, self.recipe, self.writer = teacher, recipe, writer
        self.mean, self.std = recipe.clip_mean or mean, recipe.clip_std or std
        self.size = _input_size(recipe, teacher)
        self.source = ""
        self.resampled = False

    def add(self, batch: Batch, number: int) -> None:
        pixels, convention = batch.source(self.recipe.pixels)
        what = "images" if batch.images is not None else "pixel_values"
        check_images(pixels.detach().cpu(), convention, self.mean, self.std, what, number, batch.ids)
        if self.source not in ("", what):
            raise DataError(
                f"batch {number} holds {what}, those before held {self.source}: a cache is made from one kind"
            )
        self.source = what
        contents = _contents(pixels)
        ids = [int.from_bytes(content[:8], "little") for content in contents]
        if batch.ids is not None:
            ids = sample_keys(batch.ids).tolist()
        new = {content: i for i, content in enumerate(contents) if content not in self.writer}
        if not new:
            return
        latents = self._encode(pixels[list(new.values())], convention, number)
        for (content, i), latent in zip(new.items(), latents, strict=True):
            if self.writer.shape not in (None, latent.shape):
                raise ShapeError(
                    f"batch {number}: latents are {latent.shape}, those before {self.writer.shape}"
                )
            with np.errstate(over="ignore"):
                stored = latent.astype(self.writer.dtype)
            if not np.isfinite(stored).all():
                dtype = self.writer.dtype
                raise DataError(f"batch {number}, sample {i}: a latent exceeds {dtype}: use dtype='float32'")
            self.writer.add(content, ids[i], stored)

    def view(self) -> ViewFacts:
        assert self.size is not None  # known since the first batch
        return _view(self.recipe, self.mean, self.std, self.size, self.source, self.resampled)

    def _encode(self, pixels: Tensor, convention: str, number: int) -> np.ndarray[Any, Any]:
        if self.size is None:
            self.size = (int(pixels.shape[-2]), int(pixels.shape[-1]))
        self.resampled |= tuple(pixels.shape[-2:]) != self.size
        device = getattr(self.teacher, "device", None)
        with torch.no_grad():
            ready = pixels.to(device=device, dtype=torch.promote_types(pixels.dtype, torch.float32))
            ready = vae_input(ready, self.recipe, self.size, self.mean, self.std, convention)
            latents = self.teacher.encode(ready).detach().to("cpu", torch.float32)
        if latents.ndim != 4 or len(latents) != len(pixels):
            raise ShapeError(
                f"batch {number}: encode gave {tuple(latents.shape)} for {len(pixels)} images, "
                "(B, C, h, w) is needed"
            )
        check_finite(latents, batch=number)
        return latents.numpy()  # type: ignore[no-any-return]


def _recipe(recipe: Recipe | None) -> Recipe:
    recipe = Recipe() if recipe is None else recipe
    if recipe.latent != "mean":
        raise ConfigError(
            "latent='sample' draws new latents each time and cannot be cached: use latent='mean'"
        )
    return recipe


def _input_size(recipe: Recipe, teacher: Any) -> tuple[int, int] | None:
    """Height and width of the VAE's input; None: the size of the images."""
    if recipe.image_size is not None:
        return recipe.image_size, recipe.image_size
    size = getattr(teacher, "image_size", None)
    return None if size is None else (int(size[0]), int(size[1]))


def _view(
    recipe: Recipe, mean: Three, std: Three, size: tuple[int, int], source: str, resampled: bool
) -> ViewFacts:
    """The settings that decide the VAE's input for given images."""
    convention = "clip" if source == "pixel_values" else recipe.pixels
    normalised = convention == "clip" or recipe.vae_pixels == "official"
    return ViewFacts(
        source=source,
        pixels=convention,
        vae_pixels=recipe.vae_pixels,
        image_size=size,
        resampled=resampled,
        resize=recipe.resize if resampled else None,
        antialias=recipe.antialias if resampled else None,
        mean=recipe.clip_mean or mean if normalised else None,
        std=recipe.clip_std or std if normalised else None,
    )


def _compare(store: Store, source: str, saved: BaseModel, now: BaseModel) -> None:
    """Raise DataError, saying what differs, unless the facts are the same."""
    was, is_ = saved.model_dump(), now.model_dump()
    pairs = "; ".join(f"{key} was {was[key]!r}, is {is_[key]!r}" for key in was if was[key] != is_[key])
    if pairs:
        raise DataError(
            f"latent cache {store.folder} was made by {source} ({pairs[:2000]}): "
            "build it again with overwrite=True"
        )


def _check_place(path: Path, overwrite: bool) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not path.is_dir() or not holds_store(path):
        raise DataError(f"{path} exists and is not a latent cache: choose another folder")
    if not overwrite:
        raise DataError(
            f"{path} holds a latent cache already: LatentCache.open uses it, overwrite=True replaces it"
        )


def _contents(pixels: Tensor) -> list[bytes]:
    return [content_hash(image) for image in pixels.detach().to("cpu", torch.float32).numpy()]


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
