"""Good calls of the readers, the pixels, the checkpoints and the export, by name."""

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image

from builders.small import small_clip, small_teacher
from diva_rs import Recipe, Trainer, checkpoint, data, export

_VISION = {"image_size": 32, "layers": 2, "width": 64, "head_width": 64, "patch_size": 8}
_TEXT = {"context_length": 8, "vocab_size": 64, "width": 64, "heads": 1, "layers": 1}

Call = tuple[Callable[..., Any], dict[str, Any]]


def calls(scratch: Path) -> dict[str, Call]:
    """Name -> (function, good arguments); what is written goes to ``scratch``."""
    return {
        **_checkpoints(scratch),
        **_exports(scratch),
        **_readers(scratch),
        **_pixels(),
        **_latents(scratch),
    }


def _checkpoints(scratch: Path) -> dict[str, Call]:
    weights = {"a": torch.ones(3)}
    checkpoint.save_weights(scratch / "w.safetensors", weights)
    state = Trainer(small_clip(), small_teacher(), Recipe()).state_dict()
    checkpoint.save_state(scratch / "state", state)
    return {
        "load_weights": (checkpoint.load_weights, {"path": scratch / "w.safetensors"}),
        "save_weights": (checkpoint.save_weights, {"path": scratch / "v", "weights": weights}),
        "save_torch": (checkpoint.save_torch, {"path": scratch / "v.pt", "weights": weights}),
        "load_state": (checkpoint.load_state, {"folder": scratch / "state"}),
        "save_state": (checkpoint.save_state, {"folder": scratch / "s", "state": state}),
    }


def _exports(scratch: Path) -> dict[str, Call]:
    model = {"clip": small_clip()}
    quick = open_clip.model.CLIP(embed_dim=20, vision_cfg=_VISION, text_cfg=_TEXT, quick_gelu=True)
    return {
        "to_open_clip": (export.to_open_clip, model | {"path": scratch / "c.safetensors"}),
        "to_openai": (export.to_openai, {"clip": quick, "path": scratch / "c.pt", "half": False}),
        "to_transformers": (
            export.to_transformers,
            model | {"path": scratch / "folder", "vision_only": False, "processor": None},
        ),
    }


def _readers(scratch: Path) -> dict[str, Call]:
    photos, shard = scratch / "photos", scratch / "0.tar"
    photos.mkdir()
    Image.new("RGB", (20, 20), (9, 99, 200)).save(photos / "a.png")
    with tarfile.open(shard, "w") as tar:
        tar.add(photos / "a.png", "a.png")
    common = {"size": 16, "seed": 0, "on_bad_image": "raise"}
    loader = common | {"batch": 1, "workers": 0, "scale": (0.9, 1.0), "shuffle": True}
    loader["views"] = data.Views(crops=1)
    dataset = common | {"transform": None, "max_pixels": 1000}
    folder = data.ImageFolder(photos, size=16)
    unit = data.unit_tensor(Image.new("RGB", (4, 4)))
    sampler = {"ids": np.arange(3), "seed": 0, "shuffle": True}
    loads = {"dataset": folder, "batch": 1, "workers": 0, "on_bad_image": "raise", "sampler": None}
    return {
        "folder_loader": (_loads(data.folder_loader), loader | {"root": photos}),
        "shard_loader": (_loads(data.shard_loader), loader | {"pattern": str(shard)}),
        "ImageFolder": (lambda **given: data.ImageFolder(**given)[0], dataset | {"root": photos}),
        "ImageShards": (_all(data.ImageShards), dataset | {"pattern": str(shard), "shuffle": False}),
        "ImageFolder.item": (folder.__getitem__, {"index": 0}),
        "ImageFolder.set_epoch": (_all(folder.set_epoch, folder), {"epoch": 1}),
        "ImageLoader": (_loads(data.ImageLoader), loads),
        "Views": (data.Views, {"crops": 2, "flip": True}),
        "KeyedSampler": (_all(data.KeyedSampler), sampler),
        "BadImage": (lambda **given: str(data.BadImage(**given).error()), {"name": "a", "reason": "b"}),
        "train_transform": (_transform(data.train_transform), {"size": 16, "scale": (0.9, 1.0)}),
        "center_transform": (_transform(data.center_transform), {"size": 16}),
        "unit_tensor": (data.unit_tensor, {"image": Image.new("RGB", (4, 4))}),
        "keyed": (data.keyed, {"transform": data.unit_tensor, "image": _image(), "key": (1, 2, 3)}),
        "collate": (data.collate, {"samples": [{"images": unit, "ids": 1}]}),
    }


def _pixels() -> dict[str, Call]:
    unit = torch.rand(2, 3, 8, 8)
    recipe, clip = Recipe(), {"size": (16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    where = {"batch": 1, "ids": [1, 2]}
    converted = {"images": unit, "convention": "unit", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    batch = data.Batch(images=unit)

    def guard(**arguments: Any) -> None:
        made = data.PixelGuard()
        made.check(**arguments)
        made.report()

    return {
        "read_batch": (data.read_batch, {"item": {"images": unit, "ids": [1, 2]}, "number": 3}),
        "Batch": (data.Batch, {"images": unit, "pixel_values": unit, "latents": unit, "ids": [1, 2]}),
        "Batch.to": (batch.to, {"device": torch.device("cpu")}),
        "PixelGuard": (guard, {"images": unit, "convention": "unit", **where}),
        "check_images": (data.check_images, converted | {"what": "images"} | where),
        "check_finite": (data.check_finite, {"latents": unit, "what": "latents", **where}),
        "check_shape": (data.check_shape, {"images": unit, "what": "images", "batch": 1}),
        "to_unit": (data.to_unit, converted),
        "clip_input": (data.clip_input, {"images": unit, "recipe": recipe, **clip}),
        "vae_input": (data.vae_input, {"images": unit, "recipe": recipe, "convention": None, **clip}),
    }


def _latents(scratch: Path) -> dict[str, Call]:
    teacher = small_teacher()
    batch = {"images": torch.rand(2, 3, 16, 16), "ids": [0, 1]}
    cache = data.LatentCache.build([batch], teacher, scratch / "latents")
    opened = {"folder": scratch / "latents", "teacher": teacher, "recipe": Recipe()}

    def build(loader: Any, teacher: Any, path: Any) -> None:
        data.LatentCache.build(loader, teacher, path, overwrite=True)

    return {
        "LatentCache": (data.LatentCache.open, opened),
        "LatentCache.build": (
            build,
            {"loader": [torch.rand(2, 3, 16, 16)], "teacher": teacher, "path": scratch / "built"},
        ),
        "LatentCache.wrap": (_all(cache.wrap), {"loader": [batch]}),
        "LatentCache.latents": (cache.latents, {"batch": data.read_batch(batch), "number": 1}),
    }


def _image() -> Image.Image:
    return Image.new("RGB", (20, 20), (9, 99, 200))


def _loads(function: Callable[..., Any]) -> Callable[..., Any]:
    """A loader, and its batches where they do not take more processes than a test may start."""

    def run(**arguments: Any) -> Any:
        made = function(**arguments)
        few = arguments["workers"] <= 2
        return [item for item, _ in zip(made, range(2), strict=False)] if few else made

    return run


def _all(function: Callable[..., Any], then: Any = None) -> Callable[..., Any]:
    """Call, then go through what came of it (or through ``then``), two items at most."""

    def run(**arguments: Any) -> list[Any]:
        made = function(**arguments)
        return [item for item, _ in zip(made if then is None else then, range(2), strict=False)]

    return run


def _transform(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda **arguments: function(**arguments)(_image())
