"""``diva-rs info``: versions, devices and recipes."""

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

import diva_rs._native as _native
from diva_rs.recipes.presets import presets
from diva_rs.recipes.recipe import Recipe

HELP = "show versions and devices, or the recipes"
USAGE = "diva-rs info [--recipes | --recipe NAME]"

_LIBRARIES = {
    "open_clip_torch": "open-clip",
    "timm": "open-clip",
    "transformers": "transformers",
    "diffusers": "diffusers",
    "torchvision": "data",
    "pillow": "data",
    "webdataset": "data",
    "matplotlib": "plot",
    "clip-benchmark": "eval",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--recipes", action="store_true", help="list the presets, what each needs, and its scores"
    )
    which.add_argument("--recipe", metavar="NAME", help="describe a preset, each value with its source")


def run(args: argparse.Namespace) -> int:
    """Print; returns the exit code."""
    if args.recipe is not None:
        print(Recipe.named(args.recipe).describe())
        return 0
    if args.recipes:
        for name, preset in presets().items():
            print(f"{name}: {preset.summary}", *preset.needs(), sep="\n")
        return 0
    print(f"diva-rs         {_native.__version__}")
    print(f"python          {platform.python_version()} on {platform.platform()}")
    print(f"torch           {torch.__version__} (CUDA {torch.version.cuda or 'not in this build'})")
    print(f"native          built against torch {_native.__torch__}")
    print(f"CPU threads     {torch.get_num_threads()} of {os.cpu_count()}")
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        print(f"cuda:{index:<11}{device.name}, {device.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_available():
        print("devices         cpu only")
    for library, extra in _LIBRARIES.items():
        try:
            found = version(library)
        except PackageNotFoundError:
            found = f"not installed: pip install 'diva-rs[{extra}]'"
        print(f"{library:<16}{found}")
    print(
        "trainer.backend, or backend in a run's report.json, lists what runs natively, and why not the rest"
    )
    return 0
