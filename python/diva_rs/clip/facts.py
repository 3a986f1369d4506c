"""What a CLIP computes beyond its weights: activation, heads, pooling, pixels.

Two models may have the same keys and shapes and compute different things. Files and runs of diva_rs hold
these facts, and they are compared where weights are loaded.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import diva_rs._native as _native
from diva_rs._base.optional import require
from diva_rs._base.stored import read_facts
from diva_rs.clip.adapter import adapt
from diva_rs.clip.wrappers import unwrap
from diva_rs.errors import ConfigError, WeightsError, shown

Facts = dict[str, Any]

# Attributes of towers whose value no weight shows.
_SWITCHES = (
    *("pool_type", "text_pool_type", "final_ln_after_pool", "attn_pool_type", "global_pool"),
    *("eos_id", "text_eos_id", "eos_token_id", "use_pad_mask"),
)
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {  # by transformers' names
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
    "relu": functional.relu,
}


def facts(clip: Any) -> Facts:
    """What ``clip`` computes that its weights do not show, as JSON values.

    ``"vision"`` and ``"text"`` hold the activations (by transformers' names), the numbers of heads, the
    LayerNorms' eps, and how the tower pools; ``"pixels"`` the image size (H, W), mean, std and resizing;
    ``"model"`` and ``"tower"`` the class, the library and the sizes; ``"diva_rs"`` this package's version.

    >>> clip, teacher, images = diva_rs.microworld.example()
    >>> facts(clip)["vision"]["activation"], facts(clip)["pixels"]["size"]
    (['gelu'], [48, 48])
    """
    model = unwrap(clip)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pixel statistics, which are written here
            tower = adapt(model, training=False)
    except ConfigError:  # a ResNet: open_clip's file of it is written as well
        vision, pixels, sizes = getattr(model, "visual", model), {}, {}
    else:
        vision = tower.module
        sizes = {name: getattr(tower, name) for name in ("family", "patches", "width", "embed_dim")}
        pixels = {"size": list(tower.image_size), "mean": list(tower.mean), "std": list(tower.std)}
    inside = set(vision.modules())
    others = [module for module in model.modules() if module not in inside]
    cfg = getattr(vision, "preprocess_cfg", None) or {}
    pixels |= {name: cfg[name] for name in ("interpolation", "resize_mode") if name in cfg}
    found = {"vision": _computed(inside), "text": _computed(others), "pixels": pixels}
    return {"diva_rs": _native.__version__, "model": type(model).__name__, "tower": sizes, **found}


def differences(
    earlier: Mapping[str, Any], now: Mapping[str, Any], parts: Iterable[str] = ("vision", "text")
) -> list[str]:
    """What two facts disagree on in these parts: "vision activation was ['quick_gelu'], is ['gelu']".

    What only one of them holds is no difference: releases of a library differ in what they keep.
    """
    found = []
    for part in parts:
        old, new = earlier.get(part), now.get(part)
        if not isinstance(old, Mapping) or not isinstance(new, Mapping):
            continue
        for name in sorted(old.keys() & new.keys()):
            if old[name] != new[name]:
                found.append(f"{part} {name} was {shown(old[name])}, is {shown(new[name])}")
    return found


def check_facts(stored: Mapping[str, Any] | None, clip: Any, source: str) -> None:
    """Raise WeightsError if ``source`` holds weights of a model that computes something else."""
    found = differences(stored, facts(clip)) if stored else []
    if found:
        quick = any("quick_gelu" in line for line in found)
        gelu = " (open_clip: force_quick_gelu=True, or the plain name for gelu)" if quick else ""
        raise WeightsError(
            f"{source} holds weights of a model that computes something else: {'; '.join(found)}. Build the "
            f"model as it was trained{gelu}"
        )


def check_quick_gelu(clip: nn.Module, model_name: str, pretrained: str) -> bool:
    """Warn when open_clip weights were trained with another GELU than the model computes; scores then drop
    by several points.

    ``model_name`` and ``pretrained`` are the arguments of ``open_clip.create_model``. Returns True when they
    agree, or when ``pretrained`` is a file that does not say it, or an unknown tag.

    >>> clip, teacher, images = diva_rs.microworld.example()
    >>> check_quick_gelu(clip, "ViT-L-14", "laion2b_s32b_b82k")
    True
    """
    known = require("open_clip", extra="open-clip").get_pretrained_cfg(
        model_name.replace("/", "-"), pretrained
    )
    stored = None if known or not Path(pretrained).is_file() else read_facts(Path(pretrained))
    trained = {"quick_gelu" if known.get("quick_gelu") else "gelu"} if known else activations(stored)
    computes = activations(facts(clip))
    if len(computes) != 1 or len(trained) != 1 or trained == computes:
        return True
    names = {True: "QuickGELU", False: "GELU"}
    quick = trained == {"quick_gelu"}
    warnings.warn(
        f"{model_name} computes {names[not quick]}, but the weights {pretrained!r} were trained with "
        f"{names[quick]}: create the model with force_quick_gelu={quick}",
        UserWarning,
        stacklevel=2,
    )
    return False


def activation(layer: nn.Module) -> str | None:
    """The activation that a layer computes, by transformers' name, else by its class; None for no activation.

    >>> activation(nn.GELU()), activation(nn.Tanh()), activation(nn.Dropout())
    ('gelu', 'Tanh', None)
    """
    if next(layer.children(), None) is not None or next(iter(layer.state_dict()), None) is not None:
        return None
    points = torch.linspace(-3, 3, 13, dtype=torch.float32, device="cpu")
    was = layer.training
    try:
        with torch.no_grad():
            values = layer.eval()(points.clone())  # some work in place
    except Exception:  # a layer of another kind, which takes other inputs
        return None
    finally:
        layer.train(was)
    if not isinstance(values, Tensor) or values.shape != points.shape or torch.equal(values, points):
        return None
    known = (name for name, f in _ACTIVATIONS.items() if torch.allclose(values, f(points), atol=1e-6))
    return next(known, type(layer).__name__)


def _computed(modules: Iterable[nn.Module]) -> Facts:
    found: dict[str, set[Any]] = {}
    for module in modules:
        values = {name: vars(module)[name] for name in _SWITCHES if name in vars(module)}
        values |= {"activation": activation(module), "heads": getattr(module, "num_heads", None)}
        values["norm_eps"] = module.eps if isinstance(module, nn.LayerNorm) else None
        for name, value in values.items():
            if isinstance(value, (str, bool, int, float)):
                found.setdefault(name, set()).add(value)
    return {name: sorted(values, key=str) for name, values in sorted(found.items())}


def activations(stored: Mapping[str, Any] | None) -> set[str]:
    """The activations of the vision tower in facts, which may come from any file."""
    vision = (stored or {}).get("vision")
    found = vision.get("activation") if isinstance(vision, Mapping) else None
    return {name for name in found if isinstance(name, str)} if isinstance(found, list) else set()
