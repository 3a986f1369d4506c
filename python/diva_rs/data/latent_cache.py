"""Latents of a fixed set of images, encoded once and read from disk ever after."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from diva_rs._base.arguments import as_path, checked, takes
from diva_rs._base.kinds import having, instance
from diva_rs._base.settings import optional
from diva_rs.data.batches import Batch, check_loader, read_batch
from diva_rs.data.checks import NUMBER, check_finite, check_images
from diva_rs.data.conventions import OPENAI_MEAN, OPENAI_STD
from diva_rs.data.latent_identity import compare, identity, input_size, normalisation, view_of
from diva_rs.data.latent_store import Store, StoreWriter, content_hash, holds_store
from diva_rs.data.loader import ImageLoader
from diva_rs.data.pixels import vae_input
from diva_rs.data.views import Views
from diva_rs.errors import ConfigError, DataError, ShapeError, shown

_TEACHER = having("a Teacher, or what can describe itself and encode", "describe", "encode")
_RECIPE = having("a Recipe", "pixels", "vae_pixels", "resize", "antialias")


class LatentCache:
    """Latents on disk, found again by the content of the image they were made from.

    Valid for fixed views of each image only: the centre crop (``folder_loader(..., scale=None)``), or the few
    crops and mirror images that ``folder_loader(..., views=Views(crops=4, flip=True))`` shows in turn, all of
    which are cached; never a new crop in every epoch. An image that was not cached with exactly these pixels
    is an error, never a wrong latent. The cache also knows the VAE (its configuration and a fingerprint of
    its encoder's weights) and how pixels were scaled for it.

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
    @takes(teacher=_TEACHER)
    def build(
        cls,
        loader: Iterable[Any],
        teacher: Any,
        folder: str | os.PathLike[str],
        recipe: Any = None,
        mean: tuple[float, ...] = OPENAI_MEAN,
        std: tuple[float, ...] = OPENAI_STD,
        dtype: str = "float32",
        overwrite: bool = False,
    ) -> "LatentCache":
        """Encode every image of one pass over ``loader``, in all its views, and open the result.

        ``teacher.encode`` gets images in [-1, 1] of ``teacher.image_size`` made by the pixel fields of
        ``recipe`` (None: the defaults); ``mean`` and ``std`` are CLIP's own, read where those need them.
        ``dtype`` is how latents are stored, "float32" or "float16". The folder appears only when it is whole;
        an existing cache is replaced only with ``overwrite``.

        Raises DataError for bad pixels, an empty loader, latents that are not finite or an existing folder;
        ShapeError where ``encode`` gives another shape; ConfigError for a bad ``dtype`` or a recipe that
        samples latents.
        """
        recipe = _recipe(recipe)
        if dtype not in ("float32", "float16"):
            raise ConfigError(f"dtype={shown(dtype)} is unknown: one of 'float32', 'float16'")
        check_loader(loader)
        path = as_path(folder, "folder").absolute()
        _check_place(path, overwrite)
        work = _Encoder(teacher, recipe, mean, std)
        writer = StoreWriter(path, dtype)
        try:
            batches = loader.every_view() if isinstance(loader, ImageLoader) else loader
            for number, item in enumerate(tqdm(batches, desc="encode latents", unit="batch", disable=None)):
                work.add(read_batch(item, number), number, writer)
            if writer.shape is None:
                raise DataError("the loader gave no image: there is nothing to cache")
            facts = {"teacher": identity(teacher), "view": work.view()}
            if isinstance(loader, ImageLoader) and loader.views is not None:
                facts["views"] = asdict(loader.views)
            writer.finish(facts)
        except BaseException:
            writer.abort()
            raise
        return cls.open(path)

    @classmethod
    @takes(teacher=optional(_TEACHER))
    def open(
        cls,
        folder: str | os.PathLike[str],
        teacher: Any = None,
        recipe: Any = None,
        mean: tuple[float, ...] = OPENAI_MEAN,
        std: tuple[float, ...] = OPENAI_STD,
    ) -> "LatentCache":
        """Open a cache; with ``teacher`` and ``recipe`` also check that it was made by them.

        Raises DataError for a folder that is missing, incomplete or damaged, and for another VAE or other
        pixels, saying what differs.
        """
        store = Store(as_path(folder, "folder").absolute())
        if teacher is not None:
            compare(store, "teacher", identity(teacher) | {"describe": store.manifest["teacher"]["describe"]})
        if recipe is not None:
            recipe = _recipe(recipe)
            saved = store.manifest["view"]
            mean, std = normalisation(recipe, mean, std)
            size = input_size(recipe, teacher) or saved["image_size"]
            compare(store, "view", view_of(recipe, mean, std, size, saved["source"], saved["resampled"]))
        return cls(store)

    def wrap(self, loader: Iterable[Any]) -> "CachedLoader":
        """The loader with cached ``latents`` (B, C, h, w) in every batch: training never runs the VAE.

        Yields ``dict(images and/or pixel_values, latents, ids)``, the first and last as the loader gives
        them. Raises DataError, naming batch, sample and id, for an image that is not in the cache or has
        other pixels than it had.
        """
        check_loader(loader)
        return CachedLoader(self, loader)

    @takes(batch=instance(Batch, "a Batch (see read_batch)"), number=NUMBER)
    def latents(self, batch: Batch, number: int | None = None) -> Tensor:
        """The latents (B, C, h, w) of a batch's images, float32 on the CPU."""
        contents = [content_hash(image) for image in _host(_pixels(batch))]
        places = self._store.rows(contents)
        for sample in np.flatnonzero(places < 0):
            raise self._unknown(batch, int(sample), number)
        return torch.from_numpy(self._store.read(places))

    def __len__(self) -> int:
        return len(self._store.index)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (C, h, w) of each latent."""
        return tuple(self._store.manifest["shape"][1:])

    @property
    def views(self) -> Views | None:
        """The fixed views of each image that were cached; None: one, or those of a loader of your own.

        Give them to the loader that is wrapped: ``folder_loader(..., views=cache.views)``.
        """
        saved = self._store.manifest.get("views")
        return None if saved is None else Views(**saved)

    def describe(self) -> str:
        """One line: how many latents of which shape, made by what."""
        made_by = "; ".join(self._store.manifest["teacher"]["describe"].splitlines())
        return f"{len(self)} latents {self.shape} in {self._store.folder}, made by {made_by}"

    def __reduce__(self) -> Any:  # opened again in another process, not copied there
        return LatentCache.open, (self._store.folder,)

    def _unknown(self, batch: Batch, sample: int, number: int | None) -> DataError:
        where = f"sample {sample}" if number is None else f"batch {number}, sample {sample}"
        advice = f"add it by building {self._store.folder} again with overwrite=True"
        if batch.ids is None:
            return DataError(
                f"{where}: this image is not in the latent cache, or it had other pixels; {advice}"
            )
        key = _keys(batch.ids)[sample]
        if not bool((self._store.index["id"] == key).any()):
            return DataError(f"{where} (id {key}): this image is not in the latent cache; {advice}")
        return DataError(
            f"{where} (id {key}): its pixels are not those that were cached. A latent cache holds fixed "
            "views of each image: load with views=cache.views, or the centre crop (scale=None) of a cache "
            "without views; or build the cache again"
        )


class CachedLoader:
    """A loader whose batches carry cached latents; everything else about it is the wrapped loader's."""

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


class _Encoder:
    """Reads batches, encodes what is new, and remembers how."""

    def __init__(self, teacher: Any, recipe: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.teacher, self.recipe = teacher, recipe
        self.mean, self.std = normalisation(recipe, mean, std)
        self.size = input_size(recipe, teacher)
        self.source: str | None = None
        self.resampled = False

    def add(self, batch: Batch, number: int, writer: StoreWriter) -> None:
        pixels, convention = batch.source(self.recipe.pixels)
        what = "images" if batch.images is not None else "pixel_values"
        host = pixels.detach().cpu()
        check_images(host, convention, self.mean, self.std, what, number, batch.ids)
        if self.source not in (None, what):
            raise DataError(
                f"batch {number} holds {what}, those before held {self.source}: a cache is made from one kind"
            )
        self.source = what
        contents = [content_hash(image) for image in _host(host)]
        keys = [key for key, _ in contents] if batch.ids is None else _keys(batch.ids).tolist()
        fresh = [i for i, content in enumerate(contents) if content not in writer]
        fresh = [i for i in fresh if contents.index(contents[i]) == i]  # the same image twice in this batch
        if fresh:
            latents = self._encode(pixels[fresh], convention, number)
            for i, latent in zip(fresh, latents, strict=True):
                if writer.shape not in (None, latent.shape):
                    raise ShapeError(
                        f"batch {number}: latents are {latent.shape}, those before {writer.shape}"
                    )
                with np.errstate(over="ignore"):
                    if not np.isfinite(latent.astype(writer.dtype)).all():
                        raise DataError(
                            f"batch {number}, sample {i}: a latent exceeds {writer.dtype}: dtype='float32'"
                        )
                writer.add(contents[i], keys[i], latent)

    def view(self) -> dict[str, Any]:
        return view_of(self.recipe, self.mean, self.std, self.size, self.source, self.resampled)

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


def _recipe(recipe: Any) -> Any:
    if recipe is None:
        from diva_rs.recipes.recipe import Recipe

        recipe = Recipe()
    checked("recipe", recipe, _RECIPE)
    if getattr(recipe, "latent", "mean") != "mean":
        raise ConfigError(
            "latent='sample' draws new latents each time and cannot be cached: use latent='mean'"
        )
    return recipe


def _check_place(path: Path, overwrite: bool) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not path.is_dir() or not holds_store(path):
        raise DataError(f"{path} exists and is not a latent cache: choose another folder")
    if not overwrite:
        raise DataError(
            f"{path} holds a latent cache already: LatentCache.open uses it, overwrite=True replaces it"
        )


def _pixels(batch: Batch) -> Tensor:
    return batch.source("unit")[0]


def _host(pixels: Tensor) -> np.ndarray[Any, Any]:
    return pixels.detach().to("cpu", torch.float32).numpy()


def _keys(ids: Any) -> np.ndarray[Any, Any]:
    from diva_rs.data.keys import sample_keys

    return np.asarray(sample_keys(ids))
