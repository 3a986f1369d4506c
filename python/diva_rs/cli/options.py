"""Settings of ``train`` and ``cache``: from flags, a TOML file, a preset and the defaults, in this order.

The file's ``[recipe]`` table holds recipe fields (and ``preset``, the name of the recipe to start from);
everything else stands at its top level under the flag's name::

    clip = "ViT-L-14-quickgelu:openai"
    output_dir = "runs/a"

    [recipe]
    preset = "diva-openai-vit-l-14-224"
    lr = 1e-5
"""

import argparse
from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, NonNegativeFloat, PositiveFloat

from diva_rs._base.settings import hint
from diva_rs._base.toml import read_toml
from diva_rs.cli.flags import Options, add_flags, given
from diva_rs.data.decode import MAX_PIXELS
from diva_rs.errors import ConfigError, shown
from diva_rs.recipes.recipe import Recipe
from diva_rs.recipes.settings import Count, Whole

Text = Annotated[str, Field(min_length=1)]
CLIP = "open_clip MODEL[:PRETRAINED tag or file], hf-hub:..., or a transformers or open_clip folder"
DEVICE = "cpu, cuda, cuda:1, ...; none: CUDA where there is one"


class ImageOptions(Options):
    """What both commands take: a teacher, and images in batches."""

    recipe: Text | None = None
    """preset to start from (diva-rs info --recipes lists them)"""
    teacher: Text
    """diffusers folder (or repository) of the diffusion model"""
    teacher_options: tuple[Text, ...] = ()
    """option of the teacher's family as NAME=VALUE, such as guidance=4; may be repeated"""
    data: Text
    """image folder, or webdataset shards such as 'cc3m/{00000..00331}.tar'"""
    device: Text | None = Field(default=None, description=DEVICE)
    loader_batch: Count | None = None
    """images per batch of the loader; none: up to 16"""
    workers: Whole = 2
    """processes that read images"""
    prefetch: Count | None = None
    """batches that each of the workers reads ahead; none: two"""
    on_bad_image: Literal["raise", "skip"] = "raise"
    """what to do about an image that cannot be read"""
    max_pixels: Count = MAX_PIXELS
    """an image of more pixels cannot be read"""
    overwrite: bool = False
    """whether to replace what the folder holds"""


class TrainOptions(ImageOptions):
    """The flags of ``diva-rs train`` that are not recipe fields."""

    clip: Text = Field(description=CLIP)
    output_dir: Text
    """folder of the run: log, recipe, checkpoints and weights; a run in it is resumed"""
    latents: Text | None = None
    """latent cache made by diva-rs cache, whose views of the images are used"""
    judged: Text | None = None
    """judgements made by diva-rs judge, which train CLIP beside the feedback; --denoising 0: alone"""
    judged_weight: PositiveFloat = 0.3
    """weight of the judged captions in the loss"""
    keep_weight: NonNegativeFloat = 0.1
    """with --judged: weight of the loss that keeps CLIP's answers over the vocabulary's subjects"""
    tokenizer: str | None = None
    """with --judged: a folder with the tokenizer, or an open_clip model that has it; none: the model's"""
    resume: Literal["auto", "force"] = "auto"
    """whether a run resumes only under its own settings, or under others too"""
    eval_every: Count | None = None
    """steps between two evaluations; none: before and after training"""
    mmvp: Text | None = None
    """measure MMVP-VLM: the folder with Questions.csv"""
    pairs: Text | None = None
    """measure the validation half of a benchmark of pairs, by which --best may go: its folder"""
    zero_shot: Text | None = None
    """measure zero-shot accuracy: an image folder with a folder per class"""
    drift: Count | None = None
    """measure drift: mean cosine to the original on so many training images"""
    best: Text | None = None
    """score whose best weights are kept in OUTPUT_DIR/best: pairs, zero_shot, drift, mmvp"""
    best_on_test: bool = False
    """whether --best may go by a test set (mmvp), which the report then says"""
    guard: Text | None = None
    """stop where a score falls below: drift=0.95, or zero_shot=drop:1 (below the start's)"""
    tensorboard: Text | None = None
    """folder for TensorBoard's files"""
    wandb: Text | None = None
    """project of Weights & Biases to log to"""
    progress: bool = True
    """whether to show a progress bar"""


class CacheOptions(ImageOptions):
    """The flags of ``diva-rs cache`` that are not recipe fields."""

    out: Text
    """folder for the latents"""
    crops: Annotated[int, Field(ge=0, le=1000)] = 0
    """random crops of each image, drawn once, that are cached; 0: the centre crop"""
    flip: bool = False
    """whether to cache the mirror image of each crop too"""
    dtype: Literal["float32", "float16"] = "float32"
    """how latents are stored"""


_KEYS = {**TrainOptions.model_fields, **CacheOptions.model_fields}  # of a file, which both commands may share
_T = TypeVar("_T", bound=ImageOptions)


def add_options(parser: argparse.ArgumentParser, cls: type[ImageOptions], fields: Iterable[str]) -> None:
    """Give a parser the flags of these options and recipe fields, and ``--config``."""
    text = "TOML file with the same settings; flags override it"
    parser.add_argument("--config", metavar="FILE", help=text)
    add_flags(parser, cls)
    add_flags(parser.add_argument_group("recipe fields"), Recipe, fields)


def settings(args: argparse.Namespace, cls: type[_T]) -> tuple[_T, Recipe]:
    """The options and the recipe; ConfigError for a bad value, a missing option or an unknown key."""
    top, table = _read_config(args.config) if args.config else ({}, {})
    flags = given(vars(args), cls)
    named = table.pop("preset", None)
    preset = flags.get("recipe") or top.get("recipe") or named
    recipe = Recipe() if preset is None else Recipe.named(preset)
    try:
        recipe = recipe.replace(**{**table, **given(table, Recipe)})
    except ConfigError as err:
        raise ConfigError(f"config {args.config}: {err}") from None
    recipe = recipe.replace(**given(vars(args), Recipe))
    own = {name: value for name, value in given(top, cls).items() if name not in flags}
    try:
        return cls(**own, **flags), recipe
    except ConfigError as err:
        if any(str(err).startswith(f"{cls.label(name)}=") for name in own):
            raise ConfigError(f"config {args.config}: {err}") from None
        raise


def _read_config(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A TOML file's top level and its ``[recipe]`` table, with underscores in the names."""
    content = {name.replace("-", "_"): value for name, value in read_toml(path, "config").items()}
    table = content.pop("recipe", {})
    if isinstance(table, str):
        content["recipe"], table = table, {}
    if not isinstance(table, dict):
        raise ConfigError(f"config {path}: recipe={shown(table)}: give a preset's name or a table of fields")
    for name in content:
        if name in Recipe.model_fields:
            raise ConfigError(f"config {path}: {name} is a recipe field: move it into the table [recipe]")
        if name not in _KEYS:
            near = hint(name, _KEYS) or f": known are {', '.join(_KEYS)}"
            raise ConfigError(f"config {path}: unknown key {shown(name)}{near}")
    return content, {name.replace("-", "_"): value for name, value in table.items()}
