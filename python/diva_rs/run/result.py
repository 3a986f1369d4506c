"""What `post_train` gives back."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from diva_rs._base.checkpoint import save_weights
from diva_rs._base.files import make_folder, write_json
from diva_rs._base.optional import require
from diva_rs.clip.wrappers import own_weights
from diva_rs.recipes.recipe import Recipe

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass
class PostTrainResult:
    """The trained model's record.

    Attributes:
        history: one dict per logged step: step, loss, denoising, anchor, grad_norm, lr, epoch, samples (of
            this step), skipped (updates so far whose loss or gradient was not finite), samples_per_second and
            waiting (since the last log; waiting is the share of the time in which training stood still for
            the loader, on rank 0: near 1, the storage is too slow).
        report: what was trained on what: models, device, steps, samples, seconds, versions, whether it was
            interrupted.
        projector: the trained projector, an ordinary nn.Module.
        recipe: the recipe as it was run.
        clip: the caller's CLIP, the same object, now trained.
    """

    history: list[dict[str, float]]
    report: dict[str, Any]
    projector: nn.Module
    recipe: Recipe
    clip: nn.Module = field(repr=False)

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the run before its last step."""
        return bool(self.report.get("interrupted"))

    @property
    def stopped(self) -> str | None:
        """Why the guard ended the run; None where it did not."""
        return self.report.get("stopped")

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the loss over the steps, as it was logged and smoothed; returns the matplotlib axes.

        Raises:
            DependencyError: matplotlib is not installed.

        >>> result.plot().get_xlabel()
        'step'
        """
        if ax is None:
            plt = require("matplotlib.pyplot", extra="plot")
            _, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
            ax.locator_params(axis="x", integer=True, min_n_ticks=1)
        steps = [row["step"] for row in self.history]
        losses = [row["loss"] for row in self.history]
        if len(losses) < 5:  # too few for a curve: a single one would not even show as a line
            ax.plot(steps, losses, color="tab:blue", linewidth=1, marker="o", label="loss")
        else:
            ax.plot(steps, losses, color="tab:blue", alpha=0.35, linewidth=1, label="loss")
            ax.plot(steps, _smooth(losses), color="tab:blue", linewidth=1.8, label="smoothed")
        if self.recipe.projector_warmup:
            ax.axvline(self.recipe.projector_warmup, color="0.6", linestyle=":", label="CLIP starts to train")
        ax.set(
            xlabel="step",
            ylabel="denoising loss" if not self.recipe.anchor else "loss",
            title=self.recipe.name,
        )
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False)
        return ax

    def save(self, path: str | Path) -> Path:
        """Write clip.safetensors (the whole CLIP, by its own keys), projector.safetensors, and as JSON the
        recipe, the history and the report.

        Each file is written beside its place and renamed; an open_clip model loads the first one with
        ``create_model(name, pretrained=".../clip.safetensors")``. Returns the folder.

        Raises:
            DataError: the folder cannot be made or written to; names it.

        >>> import tempfile
        >>> folder = result.save(tempfile.mkdtemp())
        >>> sorted(file.name for file in folder.iterdir())[0]
        'clip.safetensors'
        """
        folder = make_folder(path)
        save_weights(folder / "clip.safetensors", own_weights(self.clip))
        save_weights(folder / "projector.safetensors", self.projector.state_dict())
        for name, content in (
            ("recipe", self.recipe.to_dict()),
            ("history", self.history),
            ("report", self.report),
        ):
            write_json(folder / f"{name}.json", content)
        return folder


def _smooth(values: list[float], weight: float = 0.9) -> list[float]:
    """Exponential average without the start's bias; a value that is not finite takes no part.

    >>> _smooth([1.0, float("nan"), 1.0])
    [1.0, 1.0, 1.0]
    """
    average, norm, smoothed = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            average = weight * average + (1 - weight) * value
            norm = weight * norm + (1 - weight)
        smoothed.append(average / norm if norm else value)
    return smoothed
