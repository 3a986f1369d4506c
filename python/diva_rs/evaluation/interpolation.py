"""Between the weights before and after: the ensemble in weight space of WiSE-FT (Wortsman et al., arXiv
2109.01903), which often keeps most of what training gained and most of what it would have lost.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diva_rs._base.optional import require
from diva_rs._base.settings import hint
from diva_rs.clip.weights import alike, fill, weights_of
from diva_rs.clip.wrappers import own_weights
from diva_rs.errors import ConfigError, WeightsError, shown
from diva_rs.evaluation.measures import VALIDATION, as_metrics, measured, names_of_test_sets
from diva_rs.evaluation.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Weights = nn.Module | Mapping[str, Tensor] | str | os.PathLike[str]
ALPHAS = tuple(step / 10 for step in range(11))


def interpolate(
    before: Weights, after: Weights, alpha: float, *, into: nn.Module | None = None
) -> dict[str, Tensor]:
    """The weights ``(1 - alpha) * before + alpha * after``, alpha from 0 to 1: nothing is extrapolated.

    ``before`` and ``after`` are models, state dicts, or files (``.safetensors``, ``.pt``; a run's folder
    stands for its ``clip.safetensors``), of the same keys and shapes. Keep a copy of ``before``: training
    changes a model in place. 0 and 1 give the bits of the two. ``into`` is a model whose weights are
    replaced, in place; it may be one of the two.

    The result is new tensors, in the dtypes and on the devices of ``after``; half precision is computed in
    float32. Raises WeightsError if keys, shapes, activations, or counters and masks differ, or a file cannot
    be read; ``into`` is then unchanged.

    >>> interpolate({"w": torch.zeros(2)}, {"w": torch.ones(2)}, 0.25)
    {'w': tensor([0.2500, 0.2500])}
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha={shown(alpha)}: a number from 0 (before) to 1 (after) is needed")
    old, new = alike(before, after, ("before", "after"))
    mixed = {key: _between(key, old[key], value, float(alpha)) for key, value in new.items()}
    if into is not None:
        fill(into, mixed, "the interpolation")
    return mixed


def _between(key: str, old: Tensor, new: Tensor, alpha: float) -> Tensor:
    old, new = old.detach().to(new.device), new.detach()
    if not new.is_floating_point():
        if old.is_floating_point() or not torch.equal(old, new.to(old.dtype)):
            raise WeightsError(f"{key} is {new.dtype} and differs between before and after: cannot be mixed")
        return new.clone()
    wide = torch.promote_types(torch.promote_types(old.dtype, new.dtype), torch.float32)
    # lerp gives the bits of its first argument at 0, and of its second at 1.
    return torch.lerp(old.to(wide), new.to(wide), alpha).to(new.dtype)


@dataclass(frozen=True)
class InterpolationSweep(Result):
    """Scores along the line; prints as a table."""

    rows: tuple[dict[str, float], ...]  # one per alpha, in the order given: alpha, and each score by its name
    test_sets: dict[str, str] = field(default_factory=dict)  # of scores of test sets: score -> their names

    @property
    def metrics(self) -> list[str]:
        """The names of the scores."""
        return [name for name in self.rows[0] if name != "alpha"]

    def best(self, metric: str, *, best_on_test: bool = False, **at_least: float) -> dict[str, float]:
        """The row with the highest ``metric`` among those that keep every bound of ``at_least``.

        A score of a test set, such as MMVP-VLM, raises ConfigError unless ``best_on_test`` is set: the score
        of an alpha that it chose is too good.

        >>> rows = ({"alpha": 0.0, "mmvp": 20.0, "top1": 75.0}, {"alpha": 1.0, "mmvp": 26.0, "top1": 70.0})
        >>> InterpolationSweep(rows).best("mmvp", top1=74.0)["alpha"]
        0.0
        """
        self._check(metric, *at_least)
        if metric in self.test_sets and not best_on_test:
            raise ConfigError(
                f"{metric} is a score of {self.test_sets[metric]}, a test set, and too good for the alpha "
                f"that it chose. {VALIDATION}, or give best_on_test=True"
            )
        kept = [row for row in self.rows if all(row[name] >= bound for name, bound in at_least.items())]
        if not kept:
            highest = ", ".join(f"{name} {max(row[name] for row in self.rows):g}" for name in at_least)
            bounds = ", ".join(f"{name} >= {bound:g}" for name, bound in at_least.items())
            raise ConfigError(f"no alpha keeps {bounds}: the highest are {highest}")
        return max(kept, key=lambda row: row[metric])

    def plot(self, x: str = "alpha", y: str | None = None, ax: "Axes | None" = None) -> "Axes":
        """Draw the scores over ``x``; returns the matplotlib axes.

        Over "alpha" (the default) every score, or ``y`` alone; over another score the trade-off: ``y``
        against ``x``, each point with its alpha.

        >>> rows = ({"alpha": 0.0, "mmvp": 20.0, "top1": 75.0}, {"alpha": 1.0, "mmvp": 26.0, "top1": 70.0})
        >>> InterpolationSweep(rows).plot("top1", "mmvp").get_xlabel()
        'top1'
        """
        self._check(x, *([] if y is None else [y]))
        if x != "alpha" and y is None:
            raise ConfigError(f"plot(x={shown(x)}) needs y: one of {', '.join(self.metrics)}")
        if ax is None:
            plt = require("matplotlib.pyplot", extra="plot")
            ax = plt.figure(figsize=(6, 3.5), layout="constrained").gca()
        for name in self.metrics if y is None else [y]:
            points = [row[x] for row in self.rows], [row[name] for row in self.rows]
            ax.plot(*points, marker="o", markersize=4, label=name)
        if x == "alpha":
            ax.set_xlabel("alpha  (0 before, 1 after)")
            ax.legend(frameon=False)
        else:
            for row in self.rows:
                place = (row[x], row[y or x])
                ax.annotate(f"{row['alpha']:g}", place, (4, 4), textcoords="offset points", fontsize=8)
            ax.set(xlabel=x, ylabel=y)
            ax.set_title("labels: alpha (0 before, 1 after)", fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
        return ax

    def records(self) -> list[dict[str, Any]]:
        """One row per alpha."""
        return list(self.rows)

    def __str__(self) -> str:
        names = ["alpha", *self.metrics]
        head = "  ".join(f"{name:>8}" for name in names)
        rows = ("  ".join(f"{row[name]:>{max(len(name), 8)}.4g}" for name in names) for row in self.rows)
        return "\n".join([head, *rows])

    def _check(self, *names: str) -> None:
        for name in names:
            if name not in self.rows[0]:
                near = hint(name, self.metrics) or f": the scores are {', '.join(self.metrics)}"
                raise ConfigError(f"there is no score {shown(name)}{near}")


def interpolation_sweep(
    before: Weights,
    after: Weights,
    metrics: Any,
    *,
    clip: nn.Module | None = None,
    alphas: Iterable[float] = ALPHAS,
) -> InterpolationSweep:
    """Score the weights between ``before`` and ``after``: how much of what was gained costs how much.

    ``metrics`` is a function of the model, or a mapping of names to such functions; ``before``, ``after`` and
    errors are as for `interpolate`. ``clip`` is the model that is scored, by default the one of ``after`` and
    ``before`` that is a model. Its weights change for each alpha and are restored to the bit, also after an
    error.

    >>> clip, teacher, images = diva_rs.microworld.example()
    >>> original = {name: value.clone() for name, value in clip.state_dict().items()}
    >>> sweep = interpolation_sweep(original, clip, {"scale": lambda clip: clip.logit_scale}, alphas=(0, 1))
    >>> [row["alpha"] for row in sweep.rows]
    [0.0, 1.0]
    """
    models = [model for model in (clip, after, before) if isinstance(model, nn.Module)]
    if not models:
        raise ConfigError("before and after are weights alone: give clip=, the model that is to be scored")
    named, model = as_metrics(metrics), models[0]
    kept = {key: value.clone() for key, value in own_weights(model).items()}
    # The model may be one of the two: its weights must not move with it.
    old, new = (
        kept if source is model else weights_of(source, name)
        for source, name in ((before, "before"), (after, "after"))
    )
    rows, tests = [], dict[str, str]()
    try:
        for alpha in alphas:
            interpolate(old, new, alpha, into=model)
            found = measured(named, model)
            rows.append({"alpha": float(alpha), **{name: value for name, (value, _) in found.items()}})
            tests |= {name: sets for name, (_, made) in found.items() if (sets := names_of_test_sets(made))}
    finally:
        fill(model, kept)
    return InterpolationSweep(tuple(rows), tests)
