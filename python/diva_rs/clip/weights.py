"""Weights by name from a model, a mapping or a file; and back into a model."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs._base.checkpoint import LONGEST, load_weights
from diva_rs._base.files import as_path, open_regular
from diva_rs._base.optional import one_line
from diva_rs._base.tensors import described, is_dense
from diva_rs.clip.wrappers import own_weights
from diva_rs.errors import ConfigError, WeightsError, a_type, shown

# The weights of a run of `post_train`, of an export for transformers, of a folder of open_clip.
_IN_FOLDERS = ("clip.safetensors", "model.safetensors", "open_clip_model.safetensors")


def weights_of(source: Any, name: str) -> dict[str, Tensor]:
    """Name -> tensor of a model, a state dict, or a file: ``.safetensors``, one that ``torch.save`` wrote, or
    a folder that holds one. A model's tensors share its storage. Errors call the source ``name``.
    """
    if isinstance(source, nn.Module):
        return _checked(own_weights(source), name)
    if isinstance(source, Mapping):
        return _checked(source, name)
    if not isinstance(source, (str, os.PathLike)):
        raise ConfigError(f"{name} is {a_type(source)}: give a model, a state dict or a file")
    path = as_path(source)
    if path.is_dir():
        inside = [path / file for file in _IN_FOLDERS if (path / file).is_file()]
        if not inside:
            raise WeightsError(f"{name}: {path} holds none of {', '.join(_IN_FOLDERS)}")
        path = inside[0]
    if path.suffix == ".safetensors":
        return load_weights(path)
    try:
        open_regular(path).close()
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # OS errors, and any error that torch.load raises on a damaged archive
        raise WeightsError(f"{name}: {path} cannot be read as weights: {one_line(err)}") from err
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]  # a training checkpoint of open_clip
    if not isinstance(content, Mapping):
        raise WeightsError(f"{name}: {path} holds {a_type(content)}, not a state dict")
    return _checked(content, f"{name}: {path}")


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


def fill(model: nn.Module, weights: Mapping[str, Tensor], name: str = "the weights") -> None:
    """Copy weights into a model, in place and in its own dtypes; all of them fit, or none is copied."""
    own = own_weights(model)
    check_alike(weights, own, (name, "the model"))
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(weights[key])


def _checked(weights: Mapping[Any, Any], name: str) -> dict[str, Tensor]:
    for key, value in weights.items():
        entry = f"{name}: entry {shown(key, 200)}"
        if not isinstance(key, str) or len(key) > LONGEST or not isinstance(value, Tensor):
            raise WeightsError(
                f"{entry} is {a_type(value)}, expected a tensor under a name of at most {LONGEST} characters"
            )
        if not is_dense(value) or value.is_meta:
            raise WeightsError(f"{entry} is {described(value)} on {value.device}, which holds no values")
    return dict(weights)
