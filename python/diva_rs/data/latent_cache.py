"""Latents of a fixed set of images: encoded once, then read from disk."""

import os
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diva_rs._base.files import as_path, beside, make_folder
from diva_rs._base.settings import differing
from diva_rs.data.accounting import Accounting
from diva_rs.data.augment import Views
from diva_rs.data.batches import Batch, check_loader, read_batch
from diva_rs.data.checks import Place, check_finite, check_images
from diva_rs.data.latent_store import Facts, Store, StoreWriter, check_place, content_hash, identity
from diva_rs.data.loader import ImageLoader
from diva_rs.data.pixels import OPENAI_MEAN, OPENAI_STD, Three, vae_input
from diva_rs.errors import ConfigError, DataError, ShapeError, shown
from diva_rs.recipes.recipe import Recipe


class LatentCache(Store):
    """Latents on disk, found by the content of the image that they were made from.

    A cache holds fixed views of each image: the centre crop (``folder_loader(..., scale=None)``), or the
    crops and mirror images of ``folder_loader(..., views=Views(crops=4, flip=True))``. It records the VAE
    and how pixels were prepared for it. Other pixels, another VAE or other settings raise DataError.

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
        """
        encoder = _Encoder(teacher, Recipe() if recipe is None else recipe, mean, std)
        if dtype not in ("float32", "float16"):
            raise ConfigError(f"dtype={shown(dtype)} is unknown: one of 'float32', 'float16'")
        check_loader(loader)
        path = as_path(folder).absolute()
        check_place(path, overwrite)
        make_folder(path.parent)
        ours = loader if isinstance(loader, ImageLoader) else None
        images = 0
        with beside(path) as place:
            place.mkdir()
            writer = StoreWriter(place, getattr(torch, dtype))
            batches = loader if ours is None else ours.every_view()
            for number, item in enumerate(tqdm(batches, desc="encode latents", unit="batch", disable=None)):
                batch = read_batch(item, number)
                encoder.add(batch, number, writer)
                images += len(batch)
            if writer.shape is None:
                raise DataError("the loader gave no image: there is nothing to cache")
            facts = Facts(
                describe=str(teacher.describe()),
                teacher=identity(teacher),
                view=encoder.view(),
                views=None if ours is None else ours.views,
                accounting=Accounting(images) if ours is None else ours.accounting,
            )
            writer.finish(facts)
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
        """Open a complete cache, and check that ``teacher`` and ``recipe``, where given, made it."""
        cache = cls(as_path(folder).absolute())
        if teacher is not None:
            cache._compare(cache.facts.teacher, "another VAE", identity(teacher))
        if recipe is not None:
            encoder, saved = _Encoder(teacher, recipe, mean, std), cache.facts.view
            encoder.size = encoder.size or saved.get("image_size")
            encoder.source, encoder.resampled = saved.get("source"), bool(saved.get("resampled"))
            cache._compare(saved, "pixels prepared in another way", encoder.view())
        return cache

    def wrap(self, loader: Iterable[Any]) -> "CachedLoader":
        """The loader with cached ``latents`` (B, C, h, w) in every batch: training never runs the VAE."""
        check_loader(loader)
        return CachedLoader(self, loader)

    def latents(self, batch: Batch, number: int | None = None) -> Tensor:
        """The latents (B, C, h, w) of a batch's images, float32 on the CPU."""
        rows = self.rows(_contents(batch.source("unit")[0]))
        if (rows < 0).any():
            where = Place("images", number, batch.ids).sample(int((rows < 0).argmax()))
            raise DataError(
                f"{where}: this image is not in the latent cache {self.folder}, or its pixels are not those "
                "that were cached. A cache holds fixed views of each image: load with views=cache.views, or "
                "scale=None if it has none"
            )
        return self.read(rows)

    @property
    def views(self) -> Views | None:
        """The cached views, for ``folder_loader(..., views=cache.views)``; None: one view of each image."""
        return self.facts.views

    @property
    def accounting(self) -> Accounting | None:
        """The images that the cache was made from, and what its loader left out; None in older caches."""
        return self.facts.accounting

    def describe(self) -> str:
        """One line: how many latents of which shape, made by what."""
        made_by = "; ".join(self.facts.describe.splitlines())
        return f"{len(self)} latents {self.shape} in {self.folder}, made by {made_by}"

    def __reduce__(self) -> Any:  # another process opens the files, it gets no copy
        return LatentCache, (self.folder,)

    def _compare(self, saved: dict[str, Any], source: str, now: dict[str, Any]) -> None:
        if found := sorted(differing(saved, now)):
            raise self._unusable(f"made by {source} ({'; '.join(found)[:2000]})")


class CachedLoader:
    """A loader whose batches carry cached latents; its other attributes are the wrapped loader's."""

    def __init__(self, cache: LatentCache, loader: Iterable[Any]) -> None:
        self.cache, self.loader = cache, loader

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, item in enumerate(self.loader):
            batch = read_batch(item, number)
            parts = vars(batch) | {"latents": self.cache.latents(batch, number)}
            yield {key: value for key, value in parts.items() if value is not None}

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]  # TypeError where the loader has no length

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)  # set_epoch, batch_size, dataset, ...


class _Encoder:
    """Encodes the images of batches that are new, and records how they became the VAE's input."""

    def __init__(self, teacher: Any, recipe: Recipe, mean: Three, std: Three) -> None:
        if recipe.latent != "mean":
            raise ConfigError("latent='sample' draws new latents each time: a cache needs latent='mean'")
        self.teacher, self.recipe = teacher, recipe
        self.mean, self.std = recipe.clip_mean or mean, recipe.clip_std or std
        size = getattr(teacher, "image_size", None)
        if recipe.image_size is not None:
            size = (recipe.image_size, recipe.image_size)
        # Height and width of the VAE's input; None: the size of the images.
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.source: str | None = None
        self.resampled = False

    def add(self, batch: Batch, number: int, writer: StoreWriter) -> None:
        pixels, convention = batch.source(self.recipe.pixels)
        what = "images" if batch.images is not None else "pixel_values"
        check_images(pixels.detach().cpu(), convention, self.mean, self.std, what, number, batch.ids)
        if self.source not in (None, what):
            raise DataError(f"batch {number} holds {what}, those before held {self.source}: use one kind")
        self.source = what
        new = {content: i for i, content in enumerate(_contents(pixels)) if content not in writer}
        if new:
            latents = self._encode(pixels[list(new.values())], convention, number)
            for (content, i), latent in zip(new.items(), latents, strict=True):
                writer.add(content, latent, f"batch {number}, sample {i}")

    def view(self) -> dict[str, Any]:
        """The settings that decide the VAE's input for given images."""
        recipe = self.recipe
        convention = "clip" if self.source == "pixel_values" else recipe.pixels
        view: dict[str, Any] = {"source": self.source, "pixels": convention, "vae_pixels": recipe.vae_pixels}
        view |= {"image_size": list(self.size or ()), "resampled": self.resampled}
        if self.resampled:
            view |= {"resize": recipe.resize, "antialias": recipe.antialias}
        if convention == "clip" or recipe.vae_pixels == "official":
            view |= {"mean": list(self.mean), "std": list(self.std)}
        return view

    def _encode(self, pixels: Tensor, convention: str, number: int) -> Tensor:
        if self.size is None:
            self.size = (int(pixels.shape[-2]), int(pixels.shape[-1]))
        self.resampled |= tuple(pixels.shape[-2:]) != self.size
        device = getattr(self.teacher, "device", None)
        with torch.no_grad():
            ready = pixels.to(device=device, dtype=torch.promote_types(pixels.dtype, torch.float32))
            ready = vae_input(ready, self.recipe, self.size, self.mean, self.std, convention)
            latents: Tensor = self.teacher.encode(ready).detach().to("cpu", torch.float32)
        if latents.ndim != 4 or len(latents) != len(pixels):
            got = f"{tuple(latents.shape)} for {len(pixels)} images"
            raise ShapeError(f"batch {number}: encode gave {got}, (B, C, h, w) is needed")
        check_finite(latents, batch=number)
        return latents


def _contents(pixels: Tensor) -> list[bytes]:
    return [content_hash(image) for image in pixels.detach().to("cpu", torch.float32).numpy()]
