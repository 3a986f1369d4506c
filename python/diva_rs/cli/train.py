"""``diva-rs train``: post-train a CLIP."""

import argparse
import os
from pathlib import Path
from typing import Any

from diva_rs._base.files import make_folder, names_in
from diva_rs.captions import CaptionTerm, Judgements, KeepTerm
from diva_rs.cli.clips import load_clip
from diva_rs.cli.models import check_data, load_images, load_teacher, pick_device, tokenizer_of
from diva_rs.cli.options import TrainOptions, add_options, settings
from diva_rs.cli.scores import scores_table, scoring
from diva_rs.clip import adapt
from diva_rs.data import LatentCache, Views
from diva_rs.distributed import launched
from diva_rs.errors import ConfigError
from diva_rs.recipes.recipe import Recipe

HELP = "post-train a CLIP with the feedback of a diffusion model"
USAGE = "diva-rs train --clip MODEL --teacher FOLDER --data FOLDER|SHARDS --output-dir FOLDER [options]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags: this command's options, and every recipe field."""
    add_options(parser, TrainOptions, Recipe.model_fields)


def run(args: argparse.Namespace) -> int:
    """Train; returns the exit code: 0, or 130 after Ctrl-C. Under a launcher rank 0 alone prints."""
    from diva_rs.run.callbacks import TensorBoard, WandB
    from diva_rs.run.post_training import post_train

    options, recipe = settings(args, TrainOptions)
    if recipe.pixels != "unit":
        raise ConfigError(f"pixels={recipe.pixels!r}: image files give 'unit' pixels, the only ones here")
    # What fails fast comes first: a mistyped path must not cost the loading of two large models.
    check_data(options.data)
    loggers = ((TensorBoard, options.tensorboard), (WandB, options.wandb))
    callbacks = [make(place) for make, place in loggers if place is not None]
    folder = _prepare_folder(options.output_dir, options.overwrite)
    if options.latents is not None:
        LatentCache.open(options.latents)
    judged = None if options.judged is None else Judgements.load(options.judged)
    device = pick_device(options.device)
    teacher = load_teacher(options, device)
    clip = load_clip(options.clip, device, recipe.precision)
    loader: Any
    if options.latents is None:
        loader = load_images(options, recipe, teacher, None, shuffle=True)
    else:
        tower = adapt(clip)
        cache = LatentCache.open(options.latents, teacher, recipe, tower.mean, tower.std)
        loader = cache.wrap(load_images(options, recipe, teacher, cache.views or Views(), shuffle=True))
    scores = scoring(options, clip, teacher, recipe)
    place = launched()
    first = place is None or place.rank == 0
    if first:
        changed = [line[2:] for line in recipe.describe().splitlines() if line.startswith("* ")]
        print(f"recipe {recipe.name}; differing from the defaults:", *(changed or ["nothing"]), sep="\n  ")
    result = post_train(
        clip,
        teacher if recipe.predicts else None,
        loader,
        recipe,
        terms=None if judged is None else _terms(judged, clip, options, recipe),
        output_dir=folder,
        resume=not options.overwrite and (options.resume == "auto" or options.resume),
        callbacks=callbacks,
        progress=options.progress,
        **scores,
    )
    if first:
        _report(result, folder)
    return 130 if result.interrupted else 0


def _terms(judged: Judgements, clip: Any, options: TrainOptions, recipe: Recipe) -> dict[str, Any]:
    """The terms of the loss that judgements make."""
    tokenizer, words = tokenizer_of(options.tokenizer or options.clip), judged.vocabulary
    terms: dict[str, Any] = {
        "captions": (options.judged_weight, CaptionTerm(judged, clip, tokenizer, seed=recipe.seed))
    }
    if options.keep_weight and words is not None and len(words.subjects) > 1:
        names = [words.caption({words.SUBJECT: subject}) for subject in words.subjects]
        terms["keep"] = (options.keep_weight, KeepTerm(clip, tokenizer, names))
    return terms


def _prepare_folder(path: str, overwrite: bool) -> Path:
    folder = make_folder(path)
    if names_in(folder) and not (folder / "run.json").exists() and not overwrite:
        raise ConfigError(
            f"--output-dir {folder} is not empty and holds no run to resume: choose another folder, or give "
            "--overwrite"
        )
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"--output-dir {folder} is not writable")
    return folder


def _report(result: Any, folder: Path) -> None:
    losses = [row["loss"] for row in result.history]
    loss = f", loss {losses[0]:.4f} at the first log, {losses[-1]:.4f} at the last" if losses else ""
    stopped = result.report.get("stopped")
    state = "interrupted after" if result.interrupted else "stopped after" if stopped else "done:"
    print(f"{state} {result.report['steps']} steps{loss}; weights and log in {folder}")
    if "evaluation" in result.report:
        print(scores_table(result.report["evaluation"]))
    if stopped:
        print(f"the guard ended the run: {stopped}")
