"""What is gained and what is lost along the line from the weights before to those after."""

import csv
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from diva_rs._base.arguments import as_path, checked, of_type
from diva_rs._base.checkpoint import write_text
from diva_rs._base.kinds import each
from diva_rs._base.optional import require
from diva_rs._base.settings import Kind, hint
from diva_rs.clip.weights import fill, weights_of
from diva_rs.clip.wrappers import own_weights
from diva_rs.errors import ConfigError, shown
from diva_rs.evaluation.interpolation import Weights, checked_alpha, interpolate
from diva_rs.evaluation.measures import as_metrics, measure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ALPHAS = each(Kind("a number from 0 to 1", checked_alpha, float), "numbers from 0 to 1")
ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class InterpolationSweep:
    """Scores along the line; prints as a table.

    Attributes:
        rows: one dict per alpha, in the order asked for: alpha, and every score by its name.
    """

    rows: tuple[dict[str, float], ...]

    @property
    def metrics(self) -> list[str]:
        """The names of the scores."""
        return [name for name in self.rows[0] if name != "alpha"]

    def best(self, metric: str, **at_least: float) -> dict[str, float]:
        """The row with the highest ``metric`` among those that keep every bound of ``at_least``.

        Raises:
            ConfigError: an unknown score, or no row that keeps the bounds.

        >>> rows = ({"alpha": 0.0, "mmvp": 20.0, "top1": 75.0}, {"alpha": 1.0, "mmvp": 26.0, "top1": 70.0})
        >>> InterpolationSweep(rows).best("mmvp", top1=74.0)["alpha"]
        0.0
        """
        for name in (metric, *at_least):
            self._check(name)
        kept = [row for row in self.rows if all(row[name] >= bound for name, bound in at_least.items())]
        if not kept:
            bounds = ", ".join(f"{name} >= {bound:g}" for name, bound in at_least.items())
            raise ConfigError(f"no alpha keeps {bounds}: the highest are {self._highest(at_least)}")
        return max(kept, key=lambda row: row[metric])

    def plot(self, x: str = "alpha", y: str | None = None, ax: "Axes | None" = None) -> "Axes":
        """Draw the scores over ``x``; returns the matplotlib axes.

        Over "alpha" (the default) every score, or ``y`` alone; over another score the trade-off: ``y``
        against ``x``, each point with its alpha.

        Raises:
            ConfigError: an unknown score, or a trade-off without ``y``.
            DependencyError: matplotlib is not installed.

        >>> rows = ({"alpha": 0.0, "mmvp": 20.0, "top1": 75.0}, {"alpha": 1.0, "mmvp": 26.0, "top1": 70.0})
        >>> InterpolationSweep(rows).plot("top1", "mmvp").get_xlabel()
        'top1'
        """
        for name in (x, *([] if y is None else [y])):
            self._check(name)
        if ax is None:
            plt = require("matplotlib.pyplot", extra="plot")
            _, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
        across = [row[x] for row in self.rows]
        if x == "alpha":
            for name in self.metrics if y is None else [y]:
                ax.plot(across, [row[name] for row in self.rows], marker="o", markersize=4, label=name)
            ax.set_xlabel("alpha  (0 before, 1 after)")
            ax.legend(frameon=False)
        else:
            if y is None:
                raise ConfigError(f"plot(x={shown(x)}) needs y: one of {', '.join(self.metrics)}")
            ax.plot(across, [row[y] for row in self.rows], marker="o", markersize=4, color="tab:blue")
            for row in self.rows:
                ax.annotate(
                    f"{row['alpha']:g}", (row[x], row[y]), (4, 4), textcoords="offset points", fontsize=8
                )
            ax.set(xlabel=x, ylabel=y, title="labels: alpha (0 before, 1 after)")
            ax.title.set_fontsize(9)
        ax.spines[["top", "right"]].set_visible(False)
        return ax

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write one line per alpha, atomically; returns the path. Raises DataError where it cannot be."""
        text = io.StringIO()
        table = csv.DictWriter(text, ["alpha", *self.metrics], lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows)
        place = as_path(path)
        write_text(place, text.getvalue())
        return place

    def __str__(self) -> str:
        names = ["alpha", *self.metrics]
        widths = [max(len(name), 8) for name in names]
        lines = ["  ".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))]
        for row in self.rows:
            cells = (f"{row[name]:>{width}.4g}" for name, width in zip(names, widths, strict=True))
            lines.append("  ".join(cells))
        return "\n".join(lines)

    def _check(self, name: str) -> None:
        of_type("metric", name, str, "the name of a score")
        if name not in self.rows[0]:
            near = hint(name, self.metrics) or f": there are {', '.join(self.metrics)}"
            raise ConfigError(f"there is no score {shown(name)}{near}")

    def _highest(self, names: Iterable[str]) -> str:
        return ", ".join(f"{name} {max(row[name] for row in self.rows):g}" for name in names)


def interpolation_sweep(
    before: Weights,
    after: Weights,
    metrics: Any,
    *,
    clip: nn.Module | None = None,
    alphas: Iterable[float] = ALPHAS,
) -> InterpolationSweep:
    """Score the weights between ``before`` and ``after``: how much of what was gained costs how much.

    Args:
        before, after: as for `interpolate`.
        metrics: a function of the model, or a mapping of names to such functions, as for `Evaluation`.
        clip: the model that is scored; by default the one of ``after`` and ``before`` that is a model. Its
            weights are changed for each alpha and come back to the bit, also after an error.
        alphas: from 0 to 1.

    Raises:
        ConfigError: no model to score, no alpha, one out of range, or a metric that gives no number.
        WeightsError: as for `interpolate`.

    >>> original = {name: value.clone() for name, value in clip.state_dict().items()}
    >>> sweep = interpolation_sweep(original, clip, {"scale": lambda clip: clip.logit_scale}, alphas=(0, 1))
    >>> [row["alpha"] for row in sweep.rows]
    [0.0, 1.0]
    """
    chosen = checked("alphas", alphas, _ALPHAS)
    if not chosen:
        raise ConfigError("alphas is empty: give numbers from 0 (before) to 1 (after)")
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
    rows = []
    try:
        for alpha in chosen:
            interpolate(old, new, alpha, into=model)
            rows.append({"alpha": alpha, **measure(named, model)})
    finally:
        fill(model, kept)
    return InterpolationSweep(tuple(rows))
