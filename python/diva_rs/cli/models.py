"""From what a command line names to a CLIP (with its transform and tokenizer), a teacher and a loader."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diva_rs._base.files import as_path, check_files, check_model
from diva_rs._base.optional import one_line, require
from diva_rs._base.settings import hint
from diva_rs._base.stored import read_facts
from diva_rs._base.tensors import available_device
from diva_rs.cli.options import ImageOptions
from diva_rs.clip import adapt
from diva_rs.clip.facts import activations, check_facts, facts
from diva_rs.clip.libraries.open_clip import names_for
from diva_rs.clip.tower import HALF, three
from diva_rs.clip.weights import fill, stored, weights_of
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
    folder = as_path(spec)
    if (folder / "config.json").is_file():
        model = _from_transformers(folder)
    elif (folder / "open_clip_config.json").is_file():
        model = _from_open_clip(f"local-dir:{folder}", folder)
    elif folder.is_dir():
        raise ConfigError(_no_model_in(folder))
    elif spec.startswith(_SCHEMES):
        model = _from_open_clip(spec, spec.removeprefix("local-dir:"))
    else:
        name, _, pretrained = spec.partition(":")
        quick_gelu = _check_open_clip(name, pretrained)
        if quick_gelu is None:
            model = _from_file(name, pretrained)
        else:
            model = _from_open_clip(
                name, pretrained, pretrained=pretrained or None, force_quick_gelu=quick_gelu
            )
    return model.to(device, torch.float64 if precision == "fp64" else torch.float32)


def load_scored(spec: str, device: torch.device, tokenizer: str | None = None) -> Scored:
    """The model of ``spec`` in float32, with its transform and its tokenizer, or the one that is named."""
    clip = load_clip(spec, device, "fp32").eval()
    return clip, *belongings(clip, spec, tokenizer)


def load_other(
    spec: str, first: Scored, device: torch.device, of: str, tokenizer: str | None = None
) -> Scored:
    """The model to compare with: another one, or weights that a run has written for the first model.

    ``spec`` is as for `load_clip`, or a file of weights or a run folder with clip.safetensors, whose weights
    are put into a new model of ``of``.
    """
    path = as_path(spec)
    if not path.is_file() and not (path / "clip.safetensors").is_file():
        return load_scored(spec, device, tokenizer)
    clip = load_clip(of, device, "fp32").eval()
    weights, about = stored(path, "--compare")
    fill(clip, weights, spec, about)
    return clip, *first[1:]


def belongings(clip: Any, spec: str, tokenizer: str | None = None) -> tuple[Any, Any]:
    """The transform and the tokenizer of the model that was loaded by ``spec``."""
    folder = as_path(spec)
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
        max_pixels=options.max_pixels,
        shuffle=shuffle,
        prefetch=options.prefetch,
        views=views,
    )


def _from_open_clip(name: str, files: str | Path, **settings: Any) -> nn.Module:
    open_clip = require("open_clip", extra="open-clip")
    stored_here = name.startswith(_SCHEMES)
    where = name if stored_here or not files else f"{name}:{files}"
    try:
        if files and Path(files).exists():
            check_files(files)
        model: nn.Module = open_clip.create_model(name, require_pretrained=stored_here, **settings)
    except Exception as err:  # json, safetensors, pickle, OS and network errors, and mismatched shapes
        raise WeightsError(f"{where} could not be loaded: {one_line(err)}") from err
    weights = Path(files, "open_clip_model.safetensors")
    if weights.is_file():
        check_facts(read_facts(weights), model, str(weights))
    return model


def _from_file(name: str, file: str) -> nn.Module:
    """A model of open_clip with the weights of a file or of a run's folder; built as they were trained."""
    open_clip = require("open_clip", extra="open-clip")
    spec = f"{name}:{file}"
    weights, about = stored(file, "--clip")
    quick = activations(about) == {"quick_gelu"}
    try:
        model: nn.Module = open_clip.create_model(
            name, force_quick_gelu=quick, force_preprocess_cfg=_pixels(about), pretrained_hf=False
        )
        weights = open_clip.convert.convert_state_dict(model, weights)
    except Exception as err:  # json errors, and any of a layer that does not fit another
        raise WeightsError(f"{spec} could not be built: {one_line(err)}") from err
    try:
        fill(model, weights, file, about)
    except WeightsError as err:
        others = [other for other in names_for(weights) if other != name]
        near = f"; its sizes are those of {', '.join(others)}" if others else ""
        raise WeightsError(f"{spec} could not be loaded: {err}{near}") from err
    computes = activations(facts(model))
    if about is None and computes & {"gelu", "quick_gelu"} and not hasattr(model.visual, "trunk"):
        _note(
            f"{file} does not say its activation, and {name} computes {', '.join(computes)}: weights of "
            "OpenAI, MetaCLIP and DFN are trained with QuickGELU (NAME-quickgelu), others with GELU"
        )
    elif quick and not open_clip.get_model_config(name).get("quick_gelu"):
        _note(f"{spec} is built with QuickGELU, as trained; the result loads as {_twin(name)}")
    return model


def _pixels(about: Mapping[str, Any] | None) -> dict[str, Any]:
    """The statistics and the resizing that the weights were trained with, as open_clip's settings."""
    found = (about or {}).get("pixels")
    if not isinstance(found, Mapping):
        return {}
    triples = {name: found.get(name) for name in ("mean", "std")}
    texts = {"interpolation": ("bicubic", "bilinear"), "resize_mode": ("shortest", "longest", "squash")}
    names = {name: found[name] for name, known in texts.items() if found.get(name) in known}
    return {name: three(value, HALF) for name, value in triples.items() if value} | names


def _no_model_in(folder: Path) -> str:
    if (folder / "clip.safetensors").is_file():
        names = names_for(weights_of(folder, str(folder))) or ["NAME"]
        return f"{folder} holds the weights of a run, not its architecture: give {names[0]}:{folder}"
    return f"{folder} holds neither a config.json (transformers) nor an open_clip_config.json"


def _check_open_clip(name: str, pretrained: str) -> bool | None:
    """Check a model's name and tag; whether a tag's weights were trained with QuickGELU, None for a file.

    open_clip only warns when weights and configuration disagree on the activation: the features are useless.
    """
    open_clip = require("open_clip", extra="open-clip")
    models, tags = open_clip.list_models(), open_clip.list_pretrained_tags_by_model(name)
    if name not in models:
        near = hint(name, models) or ": open_clip does not list it, and it is no folder"
        raise ConfigError(f"there is no CLIP model {name!r}{near}")
    if not pretrained:
        _note(f"{name} without :PRETRAINED starts from random weights")
        return False
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    if not tag and as_path(pretrained).exists():
        return None
    if not tag and pretrained not in tags:
        near = hint(pretrained, tags) or f": its tags are {', '.join(tags) or 'none'}"
        raise ConfigError(f"{name}:{pretrained} is neither a pretrained tag nor a file{near}")
    trained, configured = (bool(c.get("quick_gelu")) for c in (tag, open_clip.get_model_config(name)))
    if configured and not trained:
        plain = name.removesuffix("-quickgelu")
        raise ConfigError(f"{name}:{pretrained} was trained without QuickGELU: use {plain}:{pretrained}")
    if trained and not configured:
        _note(f"{name}:{pretrained} is built with QuickGELU, as trained; the result loads as {_twin(name)}")
    return trained


def _twin(name: str) -> str:
    twin = f"{name}-quickgelu"
    known = twin in require("open_clip", extra="open-clip").list_models()
    return twin if known else f"{name} with force_quick_gelu=True"


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
