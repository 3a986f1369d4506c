"""The update of a size's vision tower by AdamW: ours against torch's fused and foreach forms."""

from typing import Any

import torch

from diva_rs._native import Optimizer
from lab.benchmarks.models import Models
from lab.benchmarks.sizes import Size
from lab.benchmarks.timing import take_turns


def optimizer(size: Size, rounds: int, device: str = "cpu") -> dict[str, Any]:
    """Seconds of each, in turns, on the same float32 parameters and gradients, without clipping.

    >>> from lab.benchmarks.sizes import find
    >>> found = optimizer(find("tiny"), rounds=1)
    >>> list(found["contestants"]), found["parameters"] > 1000
    (['foreach', 'fused', 'ours'], True)
    """
    shapes = Models(size, "fp32", device="meta").clip.visual.named_parameters()
    tower = {name: torch.nn.Parameter(torch.randn(one.shape, device=device)) for name, one in shapes}
    for parameter in tower.values():
        parameter.grad = torch.randn_like(parameter)
    fields = {"lr": 1e-4, "weight_decay": 1e-2}
    found: dict[str, Any] = {}
    # One after the other: the state of one is twice the tower.
    for name in ("foreach", "fused"):
        update = torch.optim.AdamW(tower.values(), **{name: True}, **fields).step  # type: ignore[arg-type]
        found[name] = take_turns({name: update}, rounds)[name].to_dict()
    ours = Optimizer("adamw", [("tower", fields["lr"], fields["weight_decay"], tower)])
    found["ours"] = take_turns({"ours": lambda: ours.step([1.0])}, rounds)["ours"].to_dict()
    return {"contestants": found, "parameters": sum(one.numel() for one in tower.values())}
