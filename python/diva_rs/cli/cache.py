"""``diva-rs cache``: encode a fixed set of images once, for training without the VAE."""

import argparse

from diva_rs.cli.models import check_data, load_images, load_teacher, pick_device
from diva_rs.cli.options import CacheOptions, add_options, settings
from diva_rs.data import LatentCache, Views
from diva_rs.errors import ConfigError

HELP = "encode images into latents once, for diva-rs train --latents"
USAGE = "diva-rs cache --data FOLDER|SHARDS --teacher FOLDER --out FOLDER [options]"

_FIELDS = ("vae_pixels", "clip_mean", "clip_std", "resize", "antialias", "image_size")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags: this command's options, and the recipe fields that decide the VAE's input."""
    add_options(parser, CacheOptions, _FIELDS)


def run(args: argparse.Namespace) -> int:
    """Encode; returns the exit code."""
    options, recipe = settings(args, CacheOptions)
    check_data(options.data)
    if recipe.vae_pixels == "official" and None in (recipe.clip_mean, recipe.clip_std):
        raise ConfigError("vae_pixels='official' starts from CLIP's pixels: give --clip-mean and --clip-std")
    teacher = load_teacher(options, pick_device(options.device))
    loader = load_images(options, recipe, teacher, Views(options.crops, options.flip), shuffle=False)
    cache = LatentCache.build(
        loader, teacher, options.out, recipe, dtype=options.dtype, overwrite=options.overwrite
    )
    print(cache.describe())
    print(cache.accounting)
    return 0
