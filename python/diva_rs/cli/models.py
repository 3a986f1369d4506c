"""From what the command line names to a CLIP, a teacher and a loader."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diva_rs._base.files import check_files, check_model
from diva_rs._base.optional import one_line, require
from diva_rs._base.settings import hint
from diva_rs.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from diva_rs.data import ImageLoader, Views
    from diva_rs.diffusion import Teacher
    from diva_rs.recipes.recipe import Recipe

_TRANSFORMERS = (
    "CLIPModel",
    "CLIPVisionModel",
    "CLIPVisionModelWithProjection",
    "MetaClip2Model",
    "MetaClip2VisionModel",
    "MetaClip2VisionModelWithProjection",
    "SiglipModel",
    "SiglipVisionModel",
)


def pick_device(name: str | None) -> "torch.device":
    """The device of that name; None: CUDA where there is one, otherwise the CPU.

    Raises:
        DeviceError: this machine does not have it.

    >>> pick_device("cpu")
    device(type='cpu')
    """
    import torch

    from diva_rs._base.tensors import available_device

    return available_device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def load_clip(spec: str, device: "torch.device", precision: str) -> "nn.Module":
    """A CLIP with float32 weights (float64 for ``precision="fp64"``) on ``device``.

    ``spec`` is a folder of transformers or open_clip, ``hf-hub:...``, or an open_clip model with a pretrained
    tag or weights file behind a colon; without one its weights are random, which is said on standard error.

    Raises:
        ConfigError: no such model or tag, with near ones.
        WeightsError: the weights cannot be loaded, or do not fit the model.
    """
    import torch

    folder = Path(spec)
    if folder.is_dir() and (folder / "config.json").is_file():
        model = _from_transformers(folder)
    elif folder.is_dir() and (folder / "open_clip_config.json").is_file():
        model = _from_open_clip(f"local-dir:{folder}", None)
    elif folder.is_dir():
        raise ConfigError(f"{spec} holds neither a config.json (transformers) nor an open_clip_config.json")
    elif spec.startswith(("hf-hub:", "local-dir:")):
        model = _from_open_clip(spec, None)
    else:
        name, _, pretrained = spec.partition(":")
        model = _from_open_clip(name, pretrained or None)
    return model.to(device, torch.float64 if precision == "fp64" else torch.float32)


def load_teacher(spec: str, device: "torch.device") -> "Teacher":
    """The frozen diffusion model of a diffusers folder or repository, on ``device``."""
    from diva_rs.diffusion import Teacher

    return Teacher(spec, device=device)


def check_data(data: str) -> None:
    """Raise ConfigError for a path that is mistyped, before large models are loaded."""
    pattern = any(mark in data for mark in "{}*?[]")
    if not pattern and not os.path.exists(data):
        raise ConfigError(f"--data {data}: there is no such folder or file")


def load_images(
    values: dict[str, Any], recipe: "Recipe", teacher: "Teacher", views: "Views | None", shuffle: bool
) -> "ImageLoader":
    """Batches of the images that ``values["data"]`` names, at the size that the VAE takes.

    ``views`` asks for fixed views of each, in place of the paper's augmentation.
    """
    from diva_rs.data import folder_loader, shard_loader

    make = folder_loader if os.path.isdir(values["data"]) else shard_loader
    return make(
        values["data"],
        batch=values["loader_batch"] or _loader_batch(recipe.batch),
        size=_side(recipe, teacher),
        workers=values["workers"],
        seed=recipe.seed,
        on_bad_image=values["on_bad_image"],
        shuffle=shuffle,
        prefetch=values["prefetch"],
        views=views,
    )


def _side(recipe: "Recipe", teacher: "Teacher") -> int:
    if recipe.image_size is not None:
        return recipe.image_size
    height, width = teacher.image_size
    if height != width:
        raise ConfigError(f"the teacher takes {height} x {width} pixels, crops are square: give --image-size")
    return height


def _loader_batch(batch: int | None) -> int:
    """The largest batch up to 16 that divides the recipe's, so that each step gets exactly its images.

    >>> _loader_batch(640), _loader_batch(20), _loader_batch(None)
    (16, 10, 16)
    """
    return 16 if batch is None else max(size for size in range(1, 17) if batch % size == 0)


def _from_open_clip(name: str, pretrained: str | None) -> "nn.Module":
    open_clip = require("open_clip", extra="open-clip")
    quick_gelu = False
    if ":" not in name:
        _check_model(open_clip, name, pretrained)
        quick_gelu = _wants_quick_gelu(open_clip, name, pretrained)
    if pretrained is None and ":" not in name:
        print(f"diva-rs: note: {name} without :PRETRAINED starts from random weights", file=sys.stderr)
    local = name.removeprefix("local-dir:") if ":" in name else pretrained
    try:
        if local is not None and Path(local).exists():
            check_files(local)
        model: nn.Module = open_clip.create_model(
            name, pretrained=pretrained, force_quick_gelu=quick_gelu, require_pretrained=":" in name
        )
    except Exception as err:  # json, safetensors, pickle, OS and network errors, and mismatched shapes
        where = name if pretrained is None else f"{name}:{pretrained}"
        raise WeightsError(f"{where} could not be loaded: {one_line(err)}") from err
    return model


def _check_model(open_clip: Any, name: str, pretrained: str | None) -> None:
    models = open_clip.list_models()
    if name not in models:
        near = hint(name, models) or ": open_clip does not list it, and it is no folder"
        raise ConfigError(f"there is no CLIP model {name!r}{near}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is not None and pretrained not in tags and not Path(pretrained).is_file():
        near = hint(pretrained, tags) or f": its tags are {', '.join(tags) or 'none'}"
        raise ConfigError(f"{name}:{pretrained} is neither a pretrained tag nor a file{near}")


def _wants_quick_gelu(open_clip: Any, name: str, pretrained: str | None) -> bool:
    """open_clip only warns when weights and configuration disagree on the activation: useless features."""
    tag = open_clip.get_pretrained_cfg(name, pretrained) if pretrained is not None else None
    if not tag:
        return False
    trained, configured = (
        bool(tag.get("quick_gelu")),
        bool(open_clip.get_model_config(name).get("quick_gelu")),
    )
    if configured and not trained:
        plain = name.removesuffix("-quickgelu")
        raise ConfigError(f"{name}:{pretrained} was trained without QuickGELU: use {plain}:{pretrained}")
    if trained and not configured:
        twin = f"{name}-quickgelu"
        load = twin if twin in open_clip.list_models() else f"{name} with force_quick_gelu=True"
        print(
            f"diva-rs: note: {name}:{pretrained} was trained with QuickGELU: it is built so, and the result "
            f"loads as {load}",
            file=sys.stderr,
        )
    return trained


def _from_transformers(folder: Path) -> "nn.Module":
    transformers = require("transformers", extra="transformers")
    try:
        check_model(folder)
        # Without the last argument a file could have a question asked on the terminal.
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        names = [str(name) for name in config.architectures or ["unknown"]]
    except Exception as err:  # json and OS errors, unknown model types
        raise ConfigError(f"{folder / 'config.json'} cannot be used: {one_line(err)}") from err
    if names[0] not in _TRANSFORMERS:
        raise ConfigError(f"{folder} holds a {names[0]}: one of {', '.join(_TRANSFORMERS)} is needed")
    try:
        model: nn.Module
        model, report = getattr(transformers, names[0]).from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
    except Exception as err:  # json, safetensors, pickle and OS errors, and mismatched shapes
        raise WeightsError(f"{folder} could not be loaded: {one_line(err)}") from err
    # transformers fills what a file lacks at random, with a warning.
    missing = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if missing:
        raise WeightsError(
            f"{folder} lacks {len(missing)} weights of its {names[0]}, the first is {missing[0]}"
        )
    return model
