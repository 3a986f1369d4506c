"""What `post_train` gives back."""

import logging
import math
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import TYPE_CHECKING, Any

from torch import nn

from diva_rs._base.checkpoint import save_weights
from diva_rs._base.files import make_folder, write_json
from diva_rs._base.optional import require
from diva_rs.clip.export.adapter import save_adapter
from diva_rs.clip.facts import facts
from diva_rs.clip.lora import LowRank
from diva_rs.clip.wrappers import adapters, own_weights, unwrap
from diva_rs.errors import WeightsError
from diva_rs.recipes.recipe import Recipe
from diva_rs.run.card import base_of, check_repository, results_of, upload, write_card

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_log = logging.getLogger("diva_rs")


@dataclass(repr=False)
class PostTrainResult:
    """The trained model's record.

    Attributes:
        history: one dict per logged step: step, the losses by name ("loss" is their sum),
            grad_norm, lr, epoch, samples (of this step), stage (where there are several), skipped
            (updates so far whose loss or gradient was not finite), samples_per_second, and waiting
            (the share of the time since the last log in which rank 0 waited for the loader).
        report: models, device, steps, samples, seconds, versions, whether it was interrupted.
        projector: the trained projector, an ordinary nn.Module.
        recipe: the recipe as it was run.
        clip: the caller's CLIP, the same object, now trained.
        denoiser: the caller's denoiser where it was trained, else None.
        low_rank: A and B of a low-rank tower, else None; ``clip`` holds the merged weights.
        evaluations: "before" and "after" -> score -> the results that it is made of, as dicts:
            name, kind ("detail" or "retention"), is_test_set, result.
    """

    history: list[dict[str, float]]
    report: dict[str, Any]
    projector: nn.Module
    recipe: Recipe
    clip: nn.Module
    denoiser: nn.Module | None = None
    low_rank: LowRank | None = None
    evaluations: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)

    def __repr__(self) -> str:
        done, losses = self.report, [f"{row['loss']:.4f}" for row in self.history]
        fell = f", loss {losses[0]} to {losses[-1]}" if losses else ""
        numbers = f"{done.get('steps', 0)} steps, {done.get('samples', 0)} images"
        return f"PostTrainResult({numbers} in {done.get('seconds', 0):.0f} s{fell})"

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the run before its last step."""
        return bool(self.report.get("interrupted"))

    @property
    def stopped(self) -> str | None:
        """Why the guard ended the run; None where it did not."""
        return self.report.get("stopped")

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the losses and the begins of stages over the steps; returns the matplotlib axes.

        >>> result = diva_rs.microworld.example("result")
        >>> result.plot().get_xlabel()
        'step'
        """
        if ax is None:
            plt = require("matplotlib.pyplot", extra="plot")
            _, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
            ax.locator_params(axis="x", integer=True, min_n_ticks=1)
        steps = [row["step"] for row in self.history]
        losses = [row["loss"] for row in self.history]
        if len(losses) < 5:  # a line of one point would be invisible
            ax.plot(steps, losses, color="tab:blue", linewidth=1, marker="o", label="loss")
        else:
            ax.plot(steps, losses, color="tab:blue", alpha=0.35, linewidth=1, label="loss")
            ax.plot(steps, _smooth(losses), color="tab:blue", linewidth=1.8, label="smoothed")
        terms = [name for name in self.report.get("losses", ()) if name != "loss"]
        for place, name in enumerate(terms if len(terms) > 1 else (), 1):
            rows, color = [row[name] for row in self.history], f"C{place}"
            ax.plot(steps, rows, color=color, linewidth=0.8, alpha=0.7, label=name)
        for stage in self.recipe.plan(self.recipe.steps)[1:]:
            trained = ", ".join(group.name for group in stage.groups)
            ax.axvline(stage.first, color="0.6", linestyle=":", label=f"then trains: {trained}")
        ax.set(xlabel="step", ylabel="loss", title=self.recipe.name)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
        return ax

    def save(self, path: str | Path) -> Path:
        """Write the trained models, and as JSON the recipe, the history and the report.

        ``clip.safetensors`` holds the whole CLIP by its own keys; open_clip loads it with
        ``create_model(name, pretrained=".../clip.safetensors")``. Its metadata say what the model
        computes (see `diva_rs.clip.facts`). ``projector.safetensors`` holds the projector, and
        ``denoiser.safetensors`` the denoiser where it was trained. Of a low-rank tower
        ``low_rank.safetensors`` holds A and B, and the folder is an adapter that
        ``peft.PeftModel.from_pretrained`` loads onto the original CLIP; a target that peft cannot
        adapt is named in a warning instead. Returns the folder.

        >>> result = diva_rs.microworld.example("result")
        >>> import tempfile
        >>> folder = result.save(tempfile.mkdtemp())
        >>> sorted(file.name for file in folder.iterdir())[0]
        'clip.safetensors'
        """
        folder = make_folder(path)
        save_models(folder, self.clip, self.projector, self.denoiser, self.low_rank)
        if self.low_rank is not None:
            try:
                save_adapter(folder, self.low_rank, self.clip)
            except WeightsError as err:
                _log.warning("no adapter of peft is written: %s", err)
        for path in [*adapters(unwrap(self.clip))][:1]:
            _log.warning(
                "clip.safetensors holds the keys of an adapter (%s.base_layer.*), which no library builds: "
                "model.merge_and_unload() and diva_rs.export write one that loads",
                path,
            )
        write_json(folder / "recipe.json", self.recipe.to_dict())
        write_json(folder / "history.json", self.history)
        write_json(folder / "report.json", self.report)
        for moment, results in self.evaluations.items():
            write_json(folder / f"evaluations-{moment}.json", results)
        return folder

    def push_to_hub(
        self,
        repo_id: str,
        *,
        base_model: str | None = None,
        private: bool | None = None,
        dry_run: bool | str | Path = False,
        before: Iterable[Any] = (),
        after: Iterable[Any] = (),
        **metadata: Any,
    ) -> str:
        """Upload what `save` writes, with a model card, to the Hugging Face Hub; returns the address.

        The card (README.md) holds the recipe, how to load the model, and the evidence with counts and
        intervals: detail, and what was kept, or that retention was not measured. The scores are those of
        ``evaluate``, and ``before`` and ``after``.

        Args:
            repo_id: the repository, as "owner/model"; it is created where there is none.
            base_model: the model before training, as the Hub names it; by default the name that a
                transformers model was loaded by.
            private: whether a repository that is created is private; None: the account's default.
            dry_run: a folder in which the files are written instead, or True for a new temporary one. It is
                returned.
            before: further results of `diva_rs.evaluation`, of CLIP before the run.
            after: those of CLIP after it.
            metadata: more fields of ``huggingface_hub.ModelCardData``, such as ``license="mit"``.

        Raises:
            ConfigError: the Hub takes no such name.
            DataError: the upload failed, and why.

        >>> result = diva_rs.microworld.example("result")
        >>> folder = result.push_to_hub("me/clip-that-sees", dry_run=True)
        >>> print((Path(folder) / "README.md").read_text())
        ---
        ...
        Retention was not measured in this run...
        """
        check_repository(repo_id)
        kept = mkdtemp(prefix="diva-rs-") if dry_run is True else dry_run
        with nullcontext(kept) if kept else TemporaryDirectory() as place:
            place = self.save(place)
            measured = (self.evaluations.get(moment, {}) for moment in ("before", "after"))
            old, new = (results_of(*pair) for pair in zip(measured, (before, after), strict=True))
            about = {"base_model": base_model or base_of(self.clip), **metadata}
            write_card(place, repo_id, self.recipe, self.report, old, new, **about)
            return str(place) if kept else upload(place, repo_id, private)


def save_models(
    folder: Path,
    clip: nn.Module,
    projector: nn.Module,
    denoiser: nn.Module | None,
    low_rank: LowRank | None = None,
) -> None:
    """Write the weights of what was trained, each as one safetensors file."""
    save_weights(folder / "clip.safetensors", own_weights(clip), facts(clip))
    save_weights(folder / "projector.safetensors", projector.state_dict())
    if denoiser is not None:
        save_weights(folder / "denoiser.safetensors", denoiser.state_dict())
    if low_rank is not None:
        about = {"rank": low_rank.rank, **low_rank.facts()}
        save_weights(folder / "low_rank.safetensors", low_rank.factors(), about)


def _smooth(values: list[float], weight: float = 0.9) -> list[float]:
    """Exponential average without the start's bias; values that are not finite are left out."""
    average, norm, smoothed = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            average = weight * average + (1 - weight) * value
            norm = weight * norm + (1 - weight)
        smoothed.append(average / norm if norm else value)
    return smoothed
