"""From what a command line names to a CLIP (with its transform and tokenizer), a teacher and a loader."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diva_rs._base.files import check_files, check_model
from diva_rs._base.optional import one_line, require
from diva_rs._base.settings import hint
from diva_rs._base.tensors import available_device
from diva_rs.cli.options import ImageOptions
from diva_rs.clip import adapt
from diva_rs.clip.weights import fill, weights_of
from diva_rs.data import ImageLoader, Views, folder_loader, shard_loader
from diva_rs.diffusion import Teacher
from diva_rs.errors import ConfigError, WeightsError
from diva_rs.recipes.recipe import Recipe

_SCHEMES = ("hf-hub:", "local-dir:")  # of open_clip's model names
_LOCAL = {"local_files_only": True, "trust_remote_code": False}  # a folder must not ask on the terminal
# The files of each, and what to do where they are missing.
_PROCESSORS = {
    "AutoImageProcessor": (
        ("preprocessor_config.json", "processor_config.json"),
        "save the model's processor beside it",
    ),
    "AutoTokenizer": (
        ("tokenizer.json", "vocab.json", "spiece.model", "vocab.txt"),
        "save the model's tokenizer beside it, or give --tokenizer",
    ),
}
TOKENIZER = "a folder with the tokenizer, or an open_clip model that has it; none: that of the model"

Scored = tuple[Any, Any, Any]
"""(clip, preprocess, tokenizer)."""


def pick_device(name: str | None) -> torch.device:
    """The device of that name; None: CUDA where there is one, otherwise the CPU.

    >>> pick_device("cpu")
    device(type='cpu')
    """
    return available_device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def load_clip(spec: str, device: torch.device, precision: str) -> nn.Module:
    """A CLIP with float32 weights (float64 for ``precision="fp64"``) on ``device``.

    ``spec`` is a folder of transformers or open_clip, ``hf-hub:...``, or an open_clip model with a pretrained
    tag or weights file behind a colon; without one its weights are random, and a note says so. Raises
    ConfigError for an unknown model or tag, with near ones, and WeightsError for unusable weights.
    """
    folder = Path(spec)
    if (folder / "config.json").is_file():
        model = _from_transformers(folder)
    elif (folder / "open_clip_config.json").is_file():
        model = _from_open_clip(f"local-dir:{folder}", folder)
    elif folder.is_dir():
        raise ConfigError(f"{spec} holds neither a config.json (transformers) nor an open_clip_config.json")
    elif spec.startswith(_SCHEMES):
        model = _from_open_clip(spec, spec.removeprefix("local-dir:"))
    else:
        name, _, pretrained = spec.partition(":")
        quick_gelu = _check_open_clip(name, pretrained)
        model = _from_open_clip(name, pretrained, pretrained=pretrained or None, force_quick_gelu=quick_gelu)
    return model.to(device, torch.float64 if precision == "fp64" else torch.float32)


def load_scored(spec: str, device: torch.device, tokenizer: str | None = None) -> Scored:
    """The model of ``spec`` in float32, with its transform and its tokenizer, or the one that is named."""
    clip = load_clip(spec, device, "fp32").eval()
    return clip, *belongings(clip, spec, tokenizer)


def load_other(
    spec: str, first: Scored, device: torch.device, of: str, tokenizer: str | None = None
) -> Scored:
    """The model to compare with: another one, or weights that a run has written for the first model.

    ``spec`` is as for `load_clip`, or a .safetensors file or a run folder with clip.safetensors, whose
    weights are put into a new model of ``of``.
    """
    path = Path(spec)
    weights = path.suffix == ".safetensors" and path.is_file()
    if not weights and not (path / "clip.safetensors").is_file():
        return load_scored(spec, device, tokenizer)
    clip = load_clip(of, device, "fp32").eval()
    fill(clip, weights_of(spec, "--compare"), spec)
    return clip, *first[1:]


def belongings(clip: Any, spec: str, tokenizer: str | None = None) -> tuple[Any, Any]:
    """The transform and the tokenizer of the model that was loaded by ``spec``."""
    folder = Path(spec)
    if (folder / "config.json").is_file():
        return processor(folder, "AutoImageProcessor"), tokenizer_of(tokenizer or spec)
    from open_clip.transform import PreprocessCfg, image_transform_v2

    adapt(clip, training=False)  # warns of pixels that do not belong to the weights
    transform = image_transform_v2(PreprocessCfg(**clip.visual.preprocess_cfg), is_train=False)
    return transform, tokenizer_of(tokenizer or spec)


def tokenizer_of(spec: str) -> Any:
    """The tokenizer of a folder of transformers or open_clip, or of a model that open_clip lists."""
    folder = Path(spec)
    if folder.is_dir() and not (folder / "open_clip_config.json").is_file():
        return processor(folder, "AutoTokenizer")
    name = f"local-dir:{folder}" if folder.is_dir() else spec
    name = name if name.startswith(_SCHEMES) else name.partition(":")[0]
    open_clip = require("open_clip", extra="open-clip")
    if not name.startswith(_SCHEMES) and name not in open_clip.list_models():
        near = hint(name, open_clip.list_models()) or ": give a folder, or a model that open_clip lists"
        raise ConfigError(f"there is no tokenizer {name!r}{near}")
    return open_clip.get_tokenizer(name)


def check_data(data: str, flag: str = "--data") -> None:
    """Raise ConfigError for a path that is mistyped, before large models are loaded."""
    pattern = any(mark in data for mark in ("{", "*", "?", "[", "://"))
    if not pattern and not os.path.exists(data):
        raise ConfigError(f"{flag} {data}: there is no such folder or file")


def load_images(
    options: ImageOptions, recipe: Recipe, teacher: Teacher, views: Views | None, shuffle: bool
) -> ImageLoader:
    """Batches of the images that ``options.data`` names, at the size that the VAE takes.

    ``views`` asks for fixed views of each, in place of the paper's augmentation. By default the batch is the
    largest one up to 16 that divides the recipe's, so that each step gets exactly its images.
    """
    height, width = teacher.image_size
    if recipe.image_size is None and height != width:
        raise ConfigError(f"the teacher takes {height} x {width} pixels, crops are square: give --image-size")
    make = folder_loader if os.path.isdir(options.data) else shard_loader
    return make(
        options.data,
        batch=options.loader_batch or max(n for n in range(1, 17) if (recipe.batch or 16) % n == 0),
        size=recipe.image_size or height,
        workers=options.workers,
        seed=recipe.seed,
        on_bad_image=options.on_bad_image,
        shuffle=shuffle,
        prefetch=options.prefetch,
        views=views,
    )


def _from_open_clip(name: str, files: str | Path, **settings: Any) -> nn.Module:
    open_clip = require("open_clip", extra="open-clip")
    stored = name.startswith(_SCHEMES)
    try:
        if files and Path(files).exists():
            check_files(files)
        model: nn.Module = open_clip.create_model(name, require_pretrained=stored, **settings)
    except Exception as err:  # json, safetensors, pickle, OS and network errors, and mismatched shapes
        where = name if stored or not files else f"{name}:{files}"
        raise WeightsError(f"{where} could not be loaded: {one_line(err)}") from err
    return model


def _check_open_clip(name: str, pretrained: str) -> bool:
    """Check a model's name and tag; whether the weights were trained with QuickGELU.

    open_clip only warns when weights and configuration disagree on the activation: the features are useless.
    """
    open_clip = require("open_clip", extra="open-clip")
    models, tags = open_clip.list_models(), open_clip.list_pretrained_tags_by_model(name)
    if name not in models:
        near = hint(name, models) or ": open_clip does not list it, and it is no folder"
        raise ConfigError(f"there is no CLIP model {name!r}{near}")
    if not pretrained:
        _note(f"{name} without :PRETRAINED starts from random weights")
    elif pretrained not in tags and not Path(pretrained).is_file():
        near = hint(pretrained, tags) or f": its tags are {', '.join(tags) or 'none'}"
        raise ConfigError(f"{name}:{pretrained} is neither a pretrained tag nor a file{near}")
    tag = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else None
    if not tag:
        return False
    trained, configured = (bool(c.get("quick_gelu")) for c in (tag, open_clip.get_model_config(name)))
    if configured and not trained:
        plain = name.removesuffix("-quickgelu")
        raise ConfigError(f"{name}:{pretrained} was trained without QuickGELU: use {plain}:{pretrained}")
    if trained and not configured:
        twin = f"{name}-quickgelu"
        load = twin if twin in models else f"{name} with force_quick_gelu=True"
        _note(f"{name}:{pretrained} is built with QuickGELU, as it was trained; the result loads as {load}")
    return trained


def _note(text: str) -> None:
    print(f"diva-rs: note: {text}", file=sys.stderr)


def _from_transformers(folder: Path) -> nn.Module:
    transformers = require("transformers", extra="transformers")
    try:
        check_model(folder)
        config = transformers.AutoConfig.from_pretrained(folder, **_LOCAL)
        architecture = str((config.architectures or ["unknown"])[0])
    except Exception as err:  # json and OS errors, unknown model types
        raise ConfigError(f"{folder / 'config.json'} cannot be used: {one_line(err)}") from err
    if not hasattr(config, "vision_config") and not hasattr(config, "patch_size"):
        raise ConfigError(
            f"{folder} holds a {architecture}, which has no vision tower: give a CLIP or SigLIP"
        )
    try:
        kind = getattr(transformers, architecture)
        model, report = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except Exception as err:  # json, safetensors, pickle and OS errors, and mismatched shapes
        raise WeightsError(f"{folder} could not be loaded: {one_line(err)}") from err
    # transformers fills what a file lacks at random, with a warning.
    missing = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if missing:
        raise WeightsError(
            f"{folder} lacks {len(missing)} weights of its {architecture}, the first is {missing[0]}"
        )
    return model  # type: ignore[no-any-return]


def processor(folder: Path, auto: str) -> Any:
    """What transformers' class ``auto`` loads from a folder; ConfigError where its files are missing."""
    transformers, (files, remedy) = require("transformers", extra="transformers"), _PROCESSORS[auto]
    try:
        # Without its files AutoTokenizer may return a tokenizer that has no words, and says nothing.
        if not any((folder / file).is_file() for file in files):
            raise FileNotFoundError
        check_files(folder)
        return getattr(transformers, auto).from_pretrained(folder, **_LOCAL)
    except Exception as err:  # OS, value and json errors of many kinds
        raise ConfigError(
            f"{folder} holds no {' or '.join(files)} that transformers can load: {remedy}"
        ) from err
