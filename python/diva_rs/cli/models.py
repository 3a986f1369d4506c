"""From what a command line names to a CLIP (with its transform and tokenizer), a teacher and a loader."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from diva_rs._base.files import as_path, check_files
from diva_rs._base.optional import require
from diva_rs._base.settings import hint
from diva_rs._base.tensors import available_device
from diva_rs.cli.clips import LOCAL, SCHEMES, folder_of, load_clip
from diva_rs.cli.options import ImageOptions
from diva_rs.clip import adapt, facts
from diva_rs.clip.facts import differences
from diva_rs.clip.weights import fill, stored
from diva_rs.data import ImageLoader, Views, folder_loader, shard_loader
from diva_rs.diffusion import Teacher
from diva_rs.errors import ConfigError, WeightsError
from diva_rs.recipes.recipe import Recipe

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
    """The device of that name; None: CUDA where there is one, otherwise the CPU."""
    return available_device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


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
    found = differences(about or {}, facts(clip), ("pixels",))
    if found:
        raise WeightsError(
            f"--compare {spec}: {'; '.join(found)}: give NAME:{spec}, which takes its own pixels"
        )
    return clip, *first[1:]


def belongings(clip: Any, spec: str, tokenizer: str | None = None) -> tuple[Any, Any]:
    """The transform and the tokenizer of the model that was loaded by ``spec``."""
    folder = folder_of(spec)
    if (folder / "config.json").is_file():
        return processor(folder, "AutoImageProcessor"), tokenizer_of(tokenizer or str(folder))
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
    name = name if name.startswith(SCHEMES) else name.partition(":")[0]
    open_clip = require("open_clip", extra="open-clip")
    if not name.startswith(SCHEMES) and name not in open_clip.list_models():
        near = hint(name, open_clip.list_models()) or ": give a folder, or a model that open_clip lists"
        raise ConfigError(f"there is no tokenizer {name!r}{near}")
    return open_clip.get_tokenizer(name)


def check_data(data: str, flag: str = "--data") -> None:
    """Raise ConfigError for a path that is mistyped, before large models are loaded."""
    pattern = any(mark in data for mark in ("{", "*", "?", "[", "://"))
    if not pattern and not os.path.exists(data):
        raise ConfigError(f"{flag} {data}: there is no such folder or file")


def load_teacher(options: ImageOptions, device: torch.device) -> Teacher:
    """The teacher of ``--teacher`` with the options of its family."""
    given: dict[str, Any] = {}
    for option in options.teacher_options:
        name, equals, value = option.partition("=")
        if not (name and equals and value):
            raise ConfigError(f"--teacher-options {option}: write NAME=VALUE, such as guidance=4")
        given[name] = value
        with suppress(ValueError):
            given[name] = json.loads(value)  # a number
    return Teacher(options.teacher, device=device, consume=True, **given)


def load_images(
    options: ImageOptions, recipe: Recipe, teacher: Teacher, views: Views | None, shuffle: bool
) -> ImageLoader:
    """Batches of the images that ``options.data`` names, at the size that the VAE takes.

    ``views`` are fixed views of each, in place of the paper's augmentation. By default the batch is the
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


def processor(folder: Path, auto: str) -> Any:
    """What transformers' class ``auto`` loads from a folder; ConfigError where its files are missing."""
    transformers, (files, remedy) = require("transformers", extra="transformers"), _PROCESSORS[auto]
    try:
        # Without its files AutoTokenizer may return a tokenizer that has no words, and says nothing.
        if not any((folder / file).is_file() for file in files):
            raise FileNotFoundError
        check_files(folder)
        return getattr(transformers, auto).from_pretrained(folder, **LOCAL)
    except Exception as err:  # OS, value and json errors of many kinds
        raise ConfigError(
            f"{folder} holds no {' or '.join(files)} that transformers can load: {remedy}"
        ) from err
