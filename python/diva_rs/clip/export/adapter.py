"""A low-rank tower as an adapter of peft: ``adapter_model.safetensors`` and ``adapter_config.json``.

The q, k and v of a fused weight are one adapter of peft: their A stand one above the other, and their B
on a diagonal of blocks, at three times the rank and alpha. A weight that is no layer's, such as open_clip's
`visual.proj`, is one of its ``target_parameters`` (from peft 0.17).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs._base.checkpoint import save_weights
from diva_rs._base.files import make_folder, write_json
from diva_rs.clip.adapter import adapt
from diva_rs.clip.lora import LowRank, Pair
from diva_rs.clip.wrappers import own_names, unwrap
from diva_rs.errors import WeightsError

_MERGED = "leave it out of low_rank_targets, or use clip.safetensors, which holds the merged weights"


def save_adapter(folder: Path, low_rank: LowRank, clip: nn.Module) -> Path:
    """Write A and B in peft's format, for ``peft.PeftModel.from_pretrained`` on the CLIP of before training.

    Raises WeightsError naming a target that peft cannot adapt.
    """
    weights, config = adapter(low_rank, clip)
    make_folder(folder)
    save_weights(folder / "adapter_model.safetensors", weights)
    write_json(folder / "adapter_config.json", config)
    return folder


def adapter(low_rank: LowRank, clip: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights by peft's names, and the fields of its ``LoraConfig``."""
    model = unwrap(clip)
    layers = dict(model.named_modules())
    layers = {own: layers[path] for path, own in own_names(model, layers).items()}
    tower = adapt(clip, training=False)
    called = tower.called()
    found: dict[str, tuple[Tensor, Tensor]] = {}  # path of a module -> A and B
    parameters, parts = [], {}
    for key, pairs in low_rank.by_key().items():
        path, _, name = key.rpartition(".")
        layer, outer = layers[path], layers.get(path.rpartition(".")[0])
        if isinstance(outer, nn.MultiheadAttention):
            raise WeightsError(f"peft (0.21) adds the update of {key} twice to its weight: {_MERGED}")
        a, b, parts[path] = _factors(low_rank.rank, pairs)
        found[path] = (a, b)
        if isinstance(layer, nn.MultiheadAttention) and name == "in_proj_weight":
            # peft adapts `out_proj` beside it, at the same rank.
            found[f"{path}.out_proj"] = (torch.zeros_like(a), b.new_zeros(layer.embed_dim, len(a)))
        elif not isinstance(layer, nn.Linear):
            if not path or parts[path] > 1 or isinstance(layer, nn.MultiheadAttention):
                raise WeightsError(f"peft has no adapter for {key}: {_MERGED}")
            if layer is tower.module and tower.opened:
                raise WeightsError(
                    f"peft's adapter for {key} would hide {path}.{tower.opened} from encode_image: {_MERGED}"
                )
            parameters.append(key)
        elif layer not in called and layer.weight is not tower.proj:
            raise WeightsError(
                f"{key} is read, and its layer is not called, so that peft's has no effect: {_MERGED}"
            )
    weights: dict[str, Tensor] = {}
    for path, (a, b) in found.items():
        place = _place(path, found)
        weights |= {f"{place}.lora_A.weight": a, f"{place}.lora_B.weight": b}
    biases = low_rank.parameters.keys() - low_rank.factors().keys()
    for key in sorted(biases):
        path, _, name = key.rpartition(".")
        weights[f"{_place(path, found)}.base_layer.{name}"] = low_rank.parameters[key].detach()
    name = getattr(model, "name_or_path", "")
    owners = {key.rpartition(".")[0] for key in parameters}
    larger = {path: count for path, count in parts.items() if count > 1}
    config = {
        "peft_type": "LORA",
        "task_type": None,
        # The name of a repository; a path would say nothing on another machine.
        "base_model_name_or_path": None if not name or Path(name).exists() else name,
        "r": low_rank.rank,
        "lora_alpha": low_rank.alpha,
        "lora_dropout": 0.0,
        "bias": "lora_only" if biases else "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(parts.keys() - owners),
        "target_parameters": parameters or None,
        "rank_pattern": {path: count * low_rank.rank for path, count in larger.items()},
        "alpha_pattern": {path: count * low_rank.alpha for path, count in larger.items()},
    }
    return {f"base_model.model.{name}": value for name, value in weights.items()}, config


def _place(path: str, wrapped: Any) -> str:
    """The path of a module where peft has wrapped others around it."""
    parts = path.split(".")
    names = [".".join(parts[: n + 1]) for n in range(len(parts))]
    return ".".join(
        f"{part}.base_layer" if name in wrapped and name != path else part
        for name, part in zip(names, parts, strict=True)
    )


def _factors(rank: int, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor, int]:
    """A (r, in) and B (out, r) of a weight as it is stored, and how many matrices it holds."""
    weight, transposed = pairs[0].matrix.weight, pairs[0].matrix.transposed
    a = torch.cat([pair.a.detach() for pair in pairs])
    b = a.new_zeros(weight.shape[1 if transposed else 0], len(a))
    for n, (matrix, _, _, own) in enumerate(pairs):
        b[matrix.start : matrix.start + matrix.rows, n * rank : (n + 1) * rank] = own.detach()
    return (b.T, a.T, len(pairs)) if transposed else (a, b, len(pairs))
