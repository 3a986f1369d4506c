"""What the gain of the best arm depends on: one setting at a time, from the least to the most."""

from dataclasses import replace
from typing import Any

from lab.study.arms import BEST, Arm


def _with(**fields: Any) -> Arm:
    return Arm({**BEST.fields, **fields})


def _anchor(kind: str, *weights: float) -> dict[str, Arm]:
    return {f"{kind} {weight:g}": _with(anchor_kind=kind, anchor=weight) for weight in weights}


def _low_rank(lr: float) -> dict[str, Arm]:
    return {f"rank {rank}, lr {lr:g}": _with(low_rank=rank, lr=lr) for rank in (4, 16, 64)}


_RANGES = ((0, 1000), (0, 250), (250, 500), (500, 750), (750, 1000))

CURVES: dict[str, dict[str, Arm]] = {
    "length": {f"{steps} steps": _with(steps=steps) for steps in (450, 900, 1800, 3600, 7200, 14_400)},
    # As many images in each, and as many steps in each.
    "batch": {f"{batch} images": _with(batch=batch, steps=14_400 // batch) for batch in (4, 8, 16, 32, 64)},
    "images-per-step": {f"{batch} images a step": _with(batch=batch) for batch in (4, 8, 16, 32, 64)},
    "timesteps": {
        **{f"{low} to {high - 1}": _with(timestep_range=(low, high)) for low, high in _RANGES},
        "stratified": _with(timesteps="stratified"),
        "logit-normal": _with(timesteps="logit-normal"),
        "min-SNR 5": _with(min_snr=5.0),
    },
    "class-tokens": {f"{count} tokens": _with(class_tokens=count) for count in (1, 2, 4, 8, 26)},
    "projector": {
        f"{kind}, {warm} steps alone": _with(projector=kind, projector_warmup=warm)
        for kind in ("linear", "mlp")
        for warm in (0, 60, 240)
    },
    "anchor-kind": {
        **_anchor("cosine", 0.1, 0.5, 2.0),
        **_anchor("squared", 1e-4, 1e-3, 1e-2),
        **_anchor("kernel", 0.1, 1.0, 10.0),
        **_anchor("squared+kernel", 1e-4, 1e-3, 1e-2),
    },
    "low-rank": {"full": BEST, **_low_rank(3e-4), **_low_rank(3e-3)},
    "after": {
        "as trained": BEST,
        **{f"interpolated {alpha:g}": replace(BEST, interpolate=alpha) for alpha in (0.25, 0.5, 0.75)},
        **{f"averaged {share:g}": replace(BEST, average=share) for share in (0.8, 0.95)},
    },
}
