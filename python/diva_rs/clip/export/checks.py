"""Whether the target library computes every weight of a model: no layer of other code is written."""

import inspect
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs._base.optional import one_line, require
from diva_rs.clip.facts import differences, facts
from diva_rs.clip.weights import check_alike
from diva_rs.clip.wrappers import adapters
from diva_rs.errors import WeightsError

_LIBRARIES = ("open_clip.", "timm.", "transformers.", "torch.", "torchvision.")
_FOREIGN = ("torch.nn.utils.", "torch.ao.", "torch.nn.quantized.", "torch.nn.intrinsic.")  # parts of torch.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MERGE = (
    "merge adapters into the model first (peft: model.merge_and_unload()), and remove parametrizations and "
    "other added layers"
)


def check_dense(model: nn.Module) -> None:
    """Raise WeightsError naming a parameter that is quantized, or a shard of one, or a layer's adapter."""
    for path in adapters(model):
        raise WeightsError(f"{path} has an adapter: {_MERGE}")
    for name, parameter in model.named_parameters():
        if type(parameter) is not nn.Parameter or parameter.dtype not in _FLOATS:
            kind = "" if type(parameter) is nn.Parameter else f" {type(parameter).__name__}"
            raise WeightsError(
                f"{name} is a{kind} tensor of {parameter.dtype}, quantized or sharded: load the model in "
                "float16 or wider, and export that"
            )


def check_layers(model: nn.Module) -> None:
    """Raise WeightsError naming a layer of another library, or a part that its class lacks."""
    bases = {base.__module__ for base in type(model).__mro__ if base not in nn.Module.__mro__}
    known = [name for name in bases if name.startswith(_LIBRARIES)] or list(bases)
    packages = (*_LIBRARIES, *(name.split(".")[0] for name in known))
    library = known[0].split(".")[0]
    for path, module in model.named_modules():
        cls = type(module)
        if path and (not cls.__module__.startswith(packages) or cls.__module__.startswith(_FOREIGN)):
            raise WeightsError(
                f"{path} is a {cls.__module__}.{cls.__name__}, which {library} does not build: {_MERGE}"
            )
        if isinstance(module, _CONTAINERS):
            continue
        words = _words(cls)
        for name in (*module._parameters, *module._buffers, *module._modules):
            if words and name not in words:
                where = f"{path}.{name}".removeprefix(".")
                raise WeightsError(f"{where} is not part of {library}'s {cls.__name__}: {_MERGE}")


def check_fresh(config: Mapping[str, Any], weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Compare weights and model with a new model of transformers, built from ``config`` without memory.

    Raises WeightsError naming a key that one of the two lacks, a shape, or what one computes and the other
    does not (an activation that was changed in the configuration alone). Without transformers installed
    nothing is compared: the rules of the layout have all keys.
    """
    if find_spec("transformers") is None:
        return
    kind = getattr(require("transformers"), config["architectures"][0])
    try:
        with torch.device("meta"):
            fresh = kind(kind.config_class.from_dict(dict(config)))
    except Exception as err:  # value, type and attribute errors of a configuration
        raise WeightsError(
            f"transformers builds no {kind.__name__} of this configuration: {one_line(err)}"
        ) from err
    try:
        check_alike(weights, own_state(fresh.state_dict()), ("this model", f"transformers' {kind.__name__}"))
    except WeightsError as err:
        raise WeightsError(f"{err}: {_MERGE}") from err
    found = differences(facts(model), facts(fresh))
    if found:
        raise WeightsError(f"the {kind.__name__} of this configuration is another model: {'; '.join(found)}")


def own_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A transformers model's weights by the keys that every release from 4.28 to 5.x loads.

    Vision-only classes keep their parts in ``vision_model.`` up to 4.x and in themselves later; later
    releases load both. ``position_ids``, a counter that old releases stored, is left out: all create it.
    """
    state = {key: value for key, value in state.items() if not key.endswith("position_ids")}
    if any(key.startswith("vision_model.") for key in state):
        return state
    return {f"vision_model.{key}": value for key, value in state.items()}


def _words(cls: type) -> set[str]:
    """Every name in the code of a class and its bases, nn.Module's apart."""
    bases = (base for base in cls.__mro__ if base not in nn.Module.__mro__)
    codes = [code for base in bases for value in vars(base).values() for code in _codes(value)]
    return {name for code in codes for name in (*code.co_names, *code.co_consts) if isinstance(name, str)}


def _codes(value: Any) -> Iterator[Any]:
    value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    code = getattr(inspect.unwrap(value), "__code__", None) if callable(value) else None
    codes = [] if code is None else [code]
    while codes:
        yield (code := codes.pop())
        codes += [const for const in code.co_consts if inspect.iscode(const)]
