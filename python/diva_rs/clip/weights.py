"""Weights by name, whether they come as a model, as a mapping or as a file; and back into a model."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs._base.arguments import as_path, described
from diva_rs._base.checkpoint import LONGEST, load_weights
from diva_rs._base.files import open_regular
from diva_rs._base.kinds import is_dense
from diva_rs._base.optional import one_line
from diva_rs.clip.wrappers import own_weights
from diva_rs.errors import ConfigError, WeightsError, shown

# What a folder may hold: a run of `post_train`, an export for transformers, a folder of open_clip.
_IN_FOLDERS = ("clip.safetensors", "model.safetensors", "open_clip_model.safetensors")


def weights_of(source: Any, name: str) -> dict[str, Tensor]:
    """Name -> tensor of a model, a state dict, or a file: ``.safetensors``, what ``torch.save`` wrote, or a
    folder that holds one. A model's tensors share its storage.

    Raises:
        ConfigError: ``source`` is none of these; ``name`` is what it is called in the message.
        WeightsError: a file cannot be read, or holds no weights; names it.

    >>> weights_of({"w": torch.ones(2)}, "before")
    {'w': tensor([1., 1.])}
    """
    if isinstance(source, nn.Module):
        return _checked(own_weights(source), name)
    if isinstance(source, Mapping):
        return _checked(source, name)
    if not isinstance(source, (str, os.PathLike)):
        raise ConfigError(f"{name} is a {type(source).__name__}: give a model, a state dict or a file")
    path = as_path(source, name).expanduser()
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
    except Exception as err:  # OS errors, and whatever a damaged archive makes torch.load raise
        raise WeightsError(f"{name}: {path} cannot be read as weights: {one_line(err)}") from err
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]  # a training checkpoint of open_clip
    if not isinstance(content, Mapping):
        raise WeightsError(f"{name}: {path} holds a {type(content).__name__}, no state dict")
    return _checked(content, f"{name}: {path}")


def check_alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor], names: tuple[str, str]) -> None:
    """Raise WeightsError unless the two have the same keys and shapes; names the first that differs.

    >>> check_alike({"w": torch.ones(2)}, {"w": torch.ones(3)}, ("before", "after"))
    Traceback (most recent call last):
    diva_rs.errors.WeightsError: w is (2,) in before, (3,) in after
    """
    for key in sorted(one.keys() ^ other.keys()):
        has, lacks = names if key in one else names[::-1]
        count = len(one.keys() ^ other.keys())
        raise WeightsError(f"{key} is in {has}, but not in {lacks} ({count} keys differ)")
    for key, value in one.items():
        if value.shape != other[key].shape:
            raise WeightsError(
                f"{key} is {tuple(value.shape)} in {names[0]}, {tuple(other[key].shape)} in {names[1]}"
            )


def fill(model: nn.Module, weights: Mapping[str, Tensor], name: str = "the weights") -> None:
    """Copy weights into a model, in place and in its own dtypes; nothing is changed when one does not fit.

    Raises:
        WeightsError: a missing, unexpected or misshapen entry; names it.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> fill(layer, {"weight": torch.full((1, 1), 3.0)})
    >>> layer.weight.item()
    3.0
    """
    own = own_weights(model)
    check_alike(weights, own, (name, "the model"))
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(weights[key])


def _checked(weights: Mapping[Any, Any], name: str) -> dict[str, Tensor]:
    for key, value in weights.items():
        if not isinstance(key, str) or len(key) > LONGEST or not isinstance(value, Tensor):
            raise WeightsError(
                f"{name}: entry {shown(key, 200)} is a {type(value).__name__}, expected a tensor "
                f"under a name of at most {LONGEST} characters"
            )
        if not is_dense(value) or value.is_meta:
            raise WeightsError(
                f"{name}: entry {shown(key, 200)} is {described(value)} on {value.device}: it holds no "
                "plain values"
            )
    return dict(weights)
