"""``diva-rs cache``: encode a fixed set of images once, for training without the VAE."""

import argparse

from diva_rs.cli.models import check_data, load_images, load_teacher, pick_device
from diva_rs.cli.options import add_options, needed, settings
from diva_rs.errors import ConfigError
from diva_rs.recipes.recipe import Recipe

HELP = "encode images into latents once, for diva-rs train --latents"
USAGE = "diva-rs cache --data FOLDER|SHARDS --teacher FOLDER --out FOLDER [options]"

_OPTIONS = (
    "recipe",
    "data",
    "teacher",
    "out",
    "device",
    "loader_batch",
    "workers",
    "prefetch",
    "on_bad_image",
    "overwrite",
    "crops",
    "flip",
    "dtype",
)
_FIELDS = ("vae_pixels", "clip_mean", "clip_std", "resize", "antialias", "image_size")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags: this command's options, and the recipe fields that decide the VAE's input."""
    add_options(parser, _OPTIONS, _FIELDS)


def run(args: argparse.Namespace) -> int:
    """Encode; returns the exit code."""
    values, recipe = settings(args, _OPTIONS)
    needed(values, "cache", "data", "teacher", "out")
    check_data(values["data"])
    normalisation = _normalisation(recipe)
    teacher = load_teacher(values["teacher"], pick_device(values["device"]))
    from diva_rs.data import LatentCache, Views

    views = Views(values["crops"], values["flip"])
    loader = load_images(values, recipe, teacher, views=views, shuffle=False)

    cache = LatentCache.build(
        loader,
        teacher,
        values["out"],
        recipe,
        dtype=values["dtype"],
        overwrite=values["overwrite"],
        **normalisation,
    )
    print(cache.describe())
    return 0


def _normalisation(recipe: Recipe) -> dict[str, tuple[float, ...]]:
    if recipe.clip_mean is not None and recipe.clip_std is not None:
        return {"mean": recipe.clip_mean, "std": recipe.clip_std}
    if recipe.vae_pixels == "official":
        raise ConfigError(
            "vae_pixels='official' starts from pixels normalised for CLIP: give --clip-mean and --clip-std"
        )
    return {}  # symmetric pixels need no normalisation
