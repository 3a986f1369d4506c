"""From a CLIP model of any supported library to its Tower, without patching or copying anything."""

import warnings
from typing import Any

import torch
from torch import nn

from diva_rs.clip.libraries import libraries
from diva_rs.clip.tower import Tower
from diva_rs.clip.wrappers import adapters, check_adapters, unwrap
from diva_rs.errors import ConfigError


def adapt(clip: Any, training: bool = True) -> Tower:
    """The vision tower of a CLIP model, for training it in place.

    ``clip`` is a model of open_clip, transformers, OpenAI's `clip` or an added library, on its device. It may
    be wrapped by DistributedDataParallel, DataParallel, torch.compile or peft, and may be the vision part
    alone (for example ``clip.visual``). Nothing of it is replaced, hooked or copied. With ``training=False``
    all parameters may be frozen. Raises ConfigError for an unknown class.

    >>> clip, teacher, images = diva_rs.microworld.example()
    >>> tower = adapt(clip)
    >>> tower.family, tower.patches, tower.width, tower.embed_dim, tower.image_size
    ('open_clip', 16, 96, 64, (48, 48))
    """
    if isinstance(clip, Tower):
        return clip
    tower = _tower(unwrap(clip))
    if training:
        _check_trainable(tower)
    return tower


def _tower(model: nn.Module) -> Tower:
    name = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise ConfigError(
            f"{name} is compiled by torch.jit, its layers cannot be called: load it with jit=False"
        )
    # Its attributes are those of the model inside, so that an adapter would match and train shards.
    if name == "FullyShardedDataParallel":
        raise ConfigError(f"clip is wrapped in {name}, whose parameters are shards: pass it unwrapped")
    parts = {"": model}
    visual = getattr(model, "visual", None)
    if isinstance(visual, nn.Module):
        parts["visual"] = visual = unwrap(visual)
    for where, part in parts.items():
        for library in libraries():
            if library.matches(part):
                return library.build(part, where)
    supported = ", ".join(library.SUPPORTED for library in libraries())
    raise ConfigError(f"{_why_not(model, visual)}. Supported are {supported}")


def _why_not(model: nn.Module, visual: nn.Module | None) -> str:
    name, part = type(model).__name__, model if visual is None else visual
    if hasattr(part, "layer1") and hasattr(part, "attnpool"):
        return f"{type(part).__name__} is a ResNet: it has no patch tokens to build a condition from"
    keys = (key for key, _ in model.named_parameters())
    if not hasattr(part, "vision_model") and visual is None and any("token_embedding" in k for k in keys):
        return f"{name} is a text tower and has no vision part"
    inside = f" (its visual is a {type(visual).__name__})" if visual is not None else ""
    return f"{name}{inside} is not a CLIP model of a known library"


def _check_trainable(tower: Tower) -> None:
    check_adapters(tower.module)
    _check_called(tower)
    for key, parameter in tower.module.named_parameters():
        why = ""
        if not parameter.is_leaf:
            why = "is not a leaf tensor but computed from others: load the weights with load_state_dict"
        elif hasattr(parameter, "full_tensor"):
            why = "is a shard of torch.distributed (fully_shard): pass the model before it"
        elif parameter.is_inference():
            why = "was created under torch.inference_mode(): load the model outside it"
        if why:
            raise ConfigError(f"{tower.prefix}{key} cannot be trained: it {why}")
    if not tower.named_parameters():
        raise ConfigError(
            f"every parameter of the vision tower ({tower.name}) is frozen, so nothing could be trained: "
            f"call {tower.call}requires_grad_(True)"
        )


def _check_called(tower: Tower) -> None:
    found = adapters(tower.module)
    called = tower.called() if found else set()
    for path, layer in found.items():
        inside = any(path.startswith(f"{other}.") for other in found)
        if layer not in called and not inside:
            raise ConfigError(
                f"the adapter on {tower.prefix}{path} has no effect, since the model reads the weight "
                "beneath it and does not call the layer: leave it out of the adapter's target_modules"
            )
    attention = (
        path for path, layer in found.items() if isinstance(layer.get_base_layer(), nn.MultiheadAttention)
    )
    for path in attention:
        warnings.warn(
            f"{tower.prefix}{path} is peft's nn.MultiheadAttention, which up to peft 0.21 adds the update of "
            "its out_proj twice and rounds its base weights at each pass: a recipe's low_rank does neither",
            UserWarning,
            stacklevel=4,
        )
        break
