"""From what a command line names to a CLIP of open_clip or transformers."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diva_rs._base.files import as_path, check_files, check_model
from diva_rs._base.hub import check_weights, hub_reason, variant_of
from diva_rs._base.optional import one_line, require
from diva_rs._base.settings import hint
from diva_rs._base.stored import read_facts
from diva_rs.clip.facts import Facts, activations, check_facts, facts
from diva_rs.clip.libraries.open_clip import names_for
from diva_rs.clip.tower import HALF, three
from diva_rs.clip.weights import fill, stored, weights_of
from diva_rs.errors import ConfigError, WeightsError
from diva_rs.run.folder import read_record

SCHEMES = ("hf-hub:", "local-dir:")  # of open_clip's model names
LOCAL = {"local_files_only": True, "trust_remote_code": False}  # a folder must not ask on the terminal


def load_clip(spec: str, device: torch.device, precision: str) -> nn.Module:
    """A CLIP with float32 weights (float64 for ``precision="fp64"``) on ``device``.

    ``spec`` is a folder of transformers or open_clip, with a weights file of a run behind a colon or without,
    ``hf-hub:...``, or an open_clip model with a pretrained tag or weights file behind a colon; without one
    its weights are random, and a note says so. Raises
    ConfigError for an unknown model or tag, with near ones, and WeightsError for unusable weights.
    """
    folder = folder_of(spec)
    if str(folder) != str(as_path(spec)):
        model = load_clip(str(folder), device, precision)
        weights, about = stored(spec.rpartition(":")[2], "--clip")
        fill(model, weights, spec, about)
    elif (folder / "config.json").is_file():
        model = _from_transformers(folder)
    elif (folder / "open_clip_config.json").is_file():
        model = _from_open_clip(f"local-dir:{folder}", folder)
    elif folder.is_dir():
        raise ConfigError(_no_model_in(folder))
    elif spec.startswith(SCHEMES):
        model = _from_open_clip(spec, spec.removeprefix("local-dir:"))
    else:
        name, _, pretrained = spec.partition(":")
        quick_gelu = _check_open_clip(name, pretrained)
        if quick_gelu is None and not pretrained.endswith((".npz", ".npy")):
            model = _from_file(name, pretrained)
        else:
            model = _from_open_clip(
                name, pretrained, pretrained=pretrained or None, force_quick_gelu=bool(quick_gelu)
            )
    return model.to(device, torch.float64 if precision == "fp64" else torch.float32)


def folder_of(spec: str) -> Path:
    """The folder of the model that ``spec`` names, without the weights behind a colon."""
    base = as_path(spec.rpartition(":")[0] or spec)
    models = ("config.json", "open_clip_config.json")
    return base if any((base / name).is_file() for name in models) else as_path(spec)


def facts_of_checkpoint(folder: Path) -> Facts | None:
    """What the CLIP of the run computes that a checkpoint is of; None where run.json does not say it."""
    content = read_record(folder.resolve().parents[1] / "run.json")
    about = content.get("clip_computes") if isinstance(content, dict) else None
    return about if isinstance(about, dict) else None


def _from_open_clip(name: str, files: str | Path, **settings: Any) -> nn.Module:
    open_clip = require("open_clip", extra="open-clip")
    stored_here = name.startswith(SCHEMES)
    where = name if stored_here or not files else f"{name}:{files}"
    try:
        if files and Path(files).exists():
            check_files(files)
        model: nn.Module = open_clip.create_model(name, require_pretrained=stored_here, **settings)
    except Exception as err:  # json, safetensors, pickle, OS and network errors, and mismatched shapes
        hub = name.removeprefix("hf-hub:") if name.startswith("hf-hub:") else None
        raise WeightsError(
            f"{where} could not be loaded: {hub_reason(err, hub) if hub else one_line(err)}"
        ) from err
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
        near = hint(name, models) or ": open_clip does not list it, and it is not a folder"
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
        config = transformers.AutoConfig.from_pretrained(folder, **LOCAL)
        architecture = str((config.architectures or ["unknown"])[0])
    except Exception as err:  # json and OS errors, unknown model types
        raise ConfigError(f"{folder / 'config.json'} cannot be used: {one_line(err)}") from err
    if not hasattr(config, "vision_config") and not hasattr(config, "patch_size"):
        raise ConfigError(
            f"{folder} holds a {architecture}, which has no vision tower: give a CLIP or SigLIP"
        )
    check_weights(folder)
    try:
        kind, variant = getattr(transformers, architecture), variant_of(folder)
        model, report = kind.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, variant=variant
        )
    except Exception as err:  # json, safetensors, pickle and OS errors, and mismatched shapes
        raise WeightsError(f"{folder} could not be loaded: {one_line(err)}") from err
    # transformers fills what a file lacks at random, with a warning.
    missing = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if missing:
        raise WeightsError(
            f"{folder} lacks {len(missing)} weights of its {architecture}, the first is {missing[0]}"
        )
    return model  # type: ignore[no-any-return]
