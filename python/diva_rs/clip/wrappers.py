"""Wrappers around a model: of parallel training, compilation, averaging, and peft's."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from diva_rs.errors import ConfigError, a_type

_MERGE = "merge_and_unload"  # of peft's models


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside torch.compile, peft's PeftModel, and wrappers that hold it alone as ``module``
    (DistributedDataParallel, DataParallel, AveragedModel, timm's ModelEmaV3), in any order.

    >>> inner = nn.Linear(2, 2)
    >>> unwrap(nn.DataParallel(inner)) is inner
    True
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"clip is {a_type(model)}, expected a loaded model: open_clip.create_model_and_transforms and "
            "clip.load return it first"
        )
    while (inner := _inside(model)) is not None:
        model = inner
    return model


def merged(clip: nn.Module) -> nn.Module:
    """As `unwrap`; where peft's PeftModel is among the wrappers or parts, a copy with its adapters merged."""
    model: Any = clip
    while not hasattr(model, _MERGE) and (inner := _inside(model)) is not None:
        model = inner
    if not any(hasattr(module, _MERGE) for module in model.modules()):
        return unwrap(model)
    check_adapters(model)
    holder: Any = nn.ModuleDict({"model": copy.deepcopy(model)})
    while tuned := next((path for path, module in holder.named_modules() if hasattr(module, _MERGE)), None):
        tuner = holder.get_submodule(tuned)
        whole = tuner.merge_and_unload()
        if adapters(whole):  # peft leaves those inside another one, such as that of `visual.proj`
            whole = tuner.base_model.merge_and_unload()
        holder.set_submodule(tuned, unwrap(whole))
    return unwrap(holder["model"])


def adapters(model: nn.Module) -> dict[str, Any]:
    """The layers that peft has put around others, by path."""
    layers = model.named_modules()
    return {path: layer for path, layer in layers if callable(getattr(layer, "get_base_layer", None))}


def check_adapters(model: nn.Module) -> None:
    """Raise ConfigError naming an adapter that the model never runs, so that it neither trains nor counts."""
    for path, module in model.named_modules():
        # torch's attention reads the weights of out_proj and does not call it. An adapter of the whole
        # attention, whose base_layer it is, takes care of that.
        own = isinstance(module, nn.MultiheadAttention) and not path.endswith("base_layer")
        if own and type(module.out_proj).forward is not nn.Linear.forward:
            raise ConfigError(
                f"the adapter on {path}.out_proj has no effect, since nn.MultiheadAttention reads the weight "
                "beneath it: leave out_proj out of the adapter's target_modules"
            )


def _inside(model: Any) -> nn.Module | None:
    """What a wrapper holds; None for a model."""
    inner: nn.Module | None = None
    alone = [name for name, _ in model.named_children()] == ["module"]
    if alone and next(model.parameters(recurse=False), None) is None:
        inner = model.module
    elif "_orig_mod" in model._modules:  # torch._dynamo.OptimizedModule
        inner = model._modules["_orig_mod"]
    elif callable(getattr(model, "get_base_model", None)):  # peft's PeftModel
        inner = model.get_base_model()
    return inner


def own_names(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Names in a model -> the names without the wrappers around its parts, as checkpoints have them.

    >>> own_names(nn.Sequential(nn.DataParallel(nn.Linear(2, 2))), ["0.module.bias"])
    {'0.module.bias': '0.bias'}
    """
    places = {id(module): path for path, module in model.named_modules()}
    outer: dict[str, str] = {}
    for path, module in model.named_modules():
        inner = unwrap(module)
        if inner is not module:
            outer.setdefault(f"{places[id(inner)]}.", f"{path}." if path else "")
    found = {}
    for name in names:
        own = name
        for inside in sorted(outer, key=len, reverse=True):
            if own.startswith(inside):
                own = outer[inside] + own[len(inside) :]
        found[name] = own
    return found


def own_weights(clip: nn.Module) -> dict[str, Tensor]:
    """The model's weights by its own keys: without those of wrappers around it or its parts."""
    model = unwrap(clip)
    weights: Mapping[str, object] = model.state_dict()
    names = own_names(model, weights)
    return {names[name]: value for name, value in weights.items() if isinstance(value, Tensor)}
