"""Weights by name from a model, a mapping or a file; and back into a model."""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs._base.files import as_path
from diva_rs._base.stored import Stored, checked, read_stored
from diva_rs.clip.facts import Facts, check_facts, differences, facts
from diva_rs.clip.wrappers import own_weights
from diva_rs.errors import ConfigError, WeightsError, a_type

# The weights of a run of `post_train`, of an export for transformers, of a folder of open_clip.
_IN_FOLDERS = (
    *("clip.safetensors", "model.safetensors", "open_clip_model.safetensors", "model.safetensors.index.json"),
    *("open_clip_pytorch_model.bin", "pytorch_model.bin", "pytorch_model.bin.index.json"),
)
# What an archive of OpenAI's holds beside the weights (clip/model.py, `build_model`, removes it too).
_OPENAI = frozenset({"input_resolution", "context_length", "vocab_size"})
# What torch's wrappers around a model or its parts put into names.
_WRAPPERS = re.compile(r"\b_(?:orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.")
_OPENAI_FACTS = {part: {"activation": ["quick_gelu"]} for part in ("vision", "text")}


def weights_of(source: Any, name: str) -> dict[str, Tensor]:
    """Name -> tensor of a model, a state dict, or a file: ``.safetensors``, one that ``torch.save`` or
    ``torch.jit.save`` wrote, or a folder that holds one. A model's tensors share its storage. Errors call the
    source ``name``.
    """
    return stored(source, name).weights


def stored(source: Any, name: str) -> Stored:
    """As `weights_of`, with what the model computes where the source says it."""
    if isinstance(source, nn.Module):
        return Stored(checked(own_weights(source), name), facts(source))
    if isinstance(source, Mapping):
        return Stored(checked(source, name))
    if not isinstance(source, (str, os.PathLike)):
        raise ConfigError(f"{name} is {a_type(source)}: give a model, a state dict or a file")
    path = as_path(source)
    if path.is_dir():
        inside = [path / file for file in _IN_FOLDERS if (path / file).is_file()]
        if not inside:
            raise WeightsError(f"{name}: {path} holds none of {', '.join(_IN_FOLDERS)}")
        path = inside[0]
    try:
        weights, about = read_stored(path)
    except WeightsError as err:
        raise WeightsError(f"{name}: {err}") from err
    if weights.keys() >= _OPENAI:
        weights = {key: value for key, value in weights.items() if key not in _OPENAI}
        about = about or _OPENAI_FACTS
    return Stored(weights, about)


def named_as(weights: Mapping[str, Tensor], keys: Iterable[str], name: str) -> dict[str, Tensor]:
    """The entries of ``weights`` that a model with these keys takes, under the model's keys.

    A prefix (``module.``, ``class_model.model.``, ...) is removed and what lies beside it (a UNet) left out,
    as are the names of compiled and sharded parts; open_clip's two layouts of the text tower are exchanged.
    Raises WeightsError where several prefixes fit.

    >>> named_as({"module.w": torch.ones(1), "epoch": torch.ones(1)}, ["w"], "x")
    {'w': tensor([1.])}
    """
    keys = set(keys)
    weights = {_WRAPPERS.sub("", k): v for k, v in weights.items()}
    weights = {k: v for k, v in weights.items() if k in keys or not k.endswith("position_ids")}
    if keys <= weights.keys():
        return weights
    longest = sorted(keys, key=len, reverse=True)
    probe = next((key for key in longest if any(k.endswith(f".{key}") for k in weights)), None)
    prefixes = {"", *(k.removesuffix(probe) for k in weights if probe and k.endswith(f".{probe}"))}
    parts = {}
    for prefix in sorted(prefixes):
        part = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        parts[prefix] = {_as_text(key, keys): value for key, value in part.items()}
    full = [prefix for prefix, part in parts.items() if keys <= part.keys()]
    if len(full) > 1:
        raise WeightsError(f"{name} holds a model under each of {', '.join(full)}: save one of them alone")
    return max(parts.values(), key=lambda part: len(part.keys() & keys))


def alike(one: Any, other: Any, names: tuple[str, str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of two sources (see `weights_of`) of one architecture, under the same keys.

    Raises WeightsError where keys, shapes or activations differ.
    """
    first, second = stored(one, names[0]), stored(other, names[1])
    left = named_as(first.weights, second.weights, names[0])
    right = named_as(second.weights, left, names[1])
    check_alike(left, right, names)
    found = differences(first.facts or {}, second.facts or {})
    if found:
        raise WeightsError(f"{names[0]} and {names[1]} are of models that differ: {'; '.join(found)}")
    return left, right


def check_alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor], names: tuple[str, str]) -> None:
    """Raise WeightsError unless the two have the same keys and shapes; names the first that differs."""
    different = sorted(one.keys() ^ other.keys())
    if different:
        key = different[0]
        has, lacks = names if key in one else names[::-1]
        raise WeightsError(f"{key} is in {has}, but not in {lacks} ({len(different)} keys differ)")
    for key, value in one.items():
        if value.shape != other[key].shape:
            raise WeightsError(
                f"{key} is {tuple(value.shape)} in {names[0]}, {tuple(other[key].shape)} in {names[1]}"
            )


def fill(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    name: str = "the weights",
    about: Facts | None = None,
) -> None:
    """Copy weights into a model, in place and in its own dtypes; all of them fit, or none is copied.

    ``about`` is what the model of the weights computes; another model raises WeightsError as well.
    """
    own = own_weights(model)
    found = named_as(weights, own, name)
    for key, value in found.items():  # open_clip has logit_scale of one value in two shapes
        if key in own and value.numel() == own[key].numel() == 1:
            found[key] = value.reshape(own[key].shape)
    check_alike(found, own, (name, "the model"))
    check_facts(about, model, name)
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(found[key])


def _as_text(key: str, keys: set[str]) -> str:
    """The key of the text tower in open_clip's other layout, if the model has that one."""
    others = (key, f"text.{key}", key.removeprefix("text."))
    return next((other for other in others if other in keys), key)
