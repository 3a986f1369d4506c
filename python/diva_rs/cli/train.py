"""``diva-rs train``: post-train a CLIP."""

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Any

from diva_rs.cli.models import check_data, load_clip, load_images, pick_device
from diva_rs.cli.options import TrainOptions, add_options, settings
from diva_rs.cli.scores import scores_table, scoring
from diva_rs.errors import ConfigError
from diva_rs.recipes.recipe import Recipe

HELP = "post-train a CLIP with the feedback of a diffusion model"
USAGE = "diva-rs train --clip MODEL --teacher FOLDER --data FOLDER|SHARDS --output-dir FOLDER [options]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags: this command's options, and every recipe field."""
    add_options(parser, TrainOptions, Recipe.model_fields)


def run(args: argparse.Namespace) -> int:
    """Train; returns the exit code: 0, or 130 after Ctrl-C. Under a launcher rank 0 alone prints."""
    options, recipe = settings(args, TrainOptions)
    if recipe.pixels != "unit":
        raise ConfigError(f"pixels={recipe.pixels!r}: image files give 'unit' pixels, the only ones here")
    # What fails fast comes first: a mistyped path must not cost the loading of two large models.
    check_data(options.data)
    callbacks = _callbacks(options)
    folder = _prepare_folder(Path(options.output_dir), options.overwrite)
    device = pick_device(options.device)
    from diva_rs.data import LatentCache, Views
    from diva_rs.diffusion import Teacher

    teacher = Teacher(options.teacher, device=device)
    cache = options.latents
    views = None if cache is None else LatentCache.open(cache).views or Views()
    loader: Any = load_images(options, recipe, teacher, views=views, shuffle=True)
    clip = load_clip(options.clip, device, recipe.precision)
    images = partial(load_images, options, recipe, teacher, views=Views(), shuffle=False)
    scores = scoring(options, clip, images, recipe)
    if cache is not None:
        loader = _with_latents(cache, loader, clip, teacher, recipe)
    first = _first()
    if first:
        print(_headline(recipe))
    result = _post_train(
        clip,
        teacher,
        loader,
        recipe,
        output_dir=folder,
        resume=False if options.overwrite else {"auto": True, "force": "force"}[options.resume],
        callbacks=callbacks,
        progress=options.progress,
        **scores,
    )
    if first:
        _report(result, folder)
    return 130 if result.interrupted else 0


def _post_train(*args: Any, **kwargs: Any) -> Any:
    from diva_rs.run.post_training import post_train

    return post_train(*args, **kwargs)


def _first() -> bool:
    """Whether this process prints: the only one, or rank 0 of those that a launcher started."""
    from diva_rs.distributed import launched

    place = launched()
    return place is None or place.rank == 0


def _callbacks(options: TrainOptions) -> list[Any]:
    from diva_rs.run.callbacks import TensorBoard, WandB

    makers = ((TensorBoard, options.tensorboard), (WandB, options.wandb))
    return [make(place) for make, place in makers if place is not None]


def _prepare_folder(folder: Path, overwrite: bool) -> Path:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output-dir {folder} is a file")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "run.json").exists() and not overwrite:
        raise ConfigError(
            f"--output-dir {folder} is not empty and holds no run to resume: choose another folder, or give "
            "--overwrite"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ConfigError(f"--output-dir {folder} cannot be created: {err.strerror or err}") from err
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"--output-dir {folder} is not writable")
    return folder


def _with_latents(cache: str, loader: Any, clip: Any, teacher: Any, recipe: Recipe) -> Any:
    from diva_rs.clip import adapt
    from diva_rs.data import LatentCache

    tower = adapt(clip)
    mean, std = recipe.clip_mean or tower.mean, recipe.clip_std or tower.std
    return LatentCache.open(cache, teacher=teacher, recipe=recipe, mean=mean, std=std).wrap(loader)


def _headline(recipe: Recipe) -> str:
    changed = [line[2:] for line in recipe.describe().splitlines() if line.startswith("* ")]
    return "\n  ".join([f"recipe {recipe.name}; differing from the defaults:", *(changed or ["nothing"])])


def _report(result: Any, folder: Path) -> None:
    losses = [row["loss"] for row in result.history]
    loss = f", loss {losses[0]:.4f} at the first log, {losses[-1]:.4f} at the last" if losses else ""
    stopped = result.report.get("stopped")
    state = "interrupted after" if result.interrupted else "stopped after" if stopped else "done:"
    print(f"{state} {result.report['steps']} steps{loss}; weights and log in {folder}")
    found = result.report.get("evaluation")
    if found:
        print(scores_table(found))
    if stopped:
        print(f"the guard ended the run: {stopped}")
