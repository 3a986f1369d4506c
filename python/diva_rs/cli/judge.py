"""``diva-rs judge``: what a diffusion model says that images show, for training and for people."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from diva_rs.captions.guesses import Guesses
from diva_rs.captions.judge import Judge
from diva_rs.captions.sources import read_sets
from diva_rs.captions.vocabulary import Vocabulary
from diva_rs.cli.clips import load_clip
from diva_rs.cli.flags import add_flags, given
from diva_rs.cli.models import TOKENIZER, check_data, load_images, load_teacher, pick_device, tokenizer_of
from diva_rs.cli.options import CLIP, ImageOptions, Text
from diva_rs.data import ImageLoader, Views
from diva_rs.distributed import launched
from diva_rs.recipes.recipe import Recipe
from diva_rs.recipes.settings import Count, Whole

HELP = "judge which words fit images best, by a diffusion model, for training with captions"
USAGE = (
    "diva-rs judge --data FOLDER|SHARDS --teacher FOLDER --clip MODEL --vocabulary FILE|photographs "
    "--out FOLDER [options]"
)

_PHOTOGRAPHS = "photographs"


class JudgeOptions(ImageOptions):
    """The flags."""

    clip: Text = Field(description=f"the CLIP whose guesses come first: {CLIP}")
    tokenizer: str | None = Field(default=None, description=TOKENIZER)
    vocabulary: Text
    """TOML file of words, or photographs: the words for photographs that come with diva_rs"""
    sets: Text | None = None
    """JSONL file of contrast sets, or of captions whose words are swapped: judged in place of the words"""
    out: Text
    """folder for the judgements, judged.html and judged.csv; a run that was interrupted goes on in it"""
    draws: Count = 8
    """draws of noise and timestep for each set of captions, at most"""
    first: Count = 2
    """draws after which a set may be settled"""
    settle: float = 3.0
    """standard errors that the best caption must be ahead for a set to be settled"""
    rounds: Count = 2
    """how often each attribute is judged, with the others as they stand"""
    timestep_range: tuple[Whole, Whole] | None = None
    """first timestep, and the one after the last; none: all"""
    loss: Literal["mse", "l1"] = "mse"
    """distance between the predicted and the true noise"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """what the diffusion model computes in"""
    image_size: Count | None = None
    """side in pixels of the images that are judged; none: the teacher's"""
    batch: Count | None = None
    """images that are denoised at a time; none: as many as fit"""
    seed: Whole = 0
    """of the draws"""
    names: tuple[Text, ...] | None = None
    """an attribute to judge, or "subject"; one flag for each. None: all attributes. Others stay guesses"""


_FIELDS = [name for name in JudgeOptions.model_fields if name != "recipe"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    add_flags(parser, JudgeOptions, _FIELDS)


def run(args: argparse.Namespace) -> int:
    """Judge; returns the exit code. Under a launcher each rank judges its share; rank 0 writes the page."""
    from diva_rs.report.judged import Summary, write_judged
    from diva_rs.run.judging import judge_images

    options = JudgeOptions(**given(vars(args), JudgeOptions))
    check_data(options.data)
    known = options.vocabulary == _PHOTOGRAPHS
    vocabulary = Vocabulary.photographs() if known else Vocabulary.read(options.vocabulary)
    place = launched()
    own = f"cuda:{place.local}" if place is not None and torch.cuda.is_available() else None
    device = pick_device(options.device or own)
    teacher = load_teacher(options, device).to_precision(options.precision)
    clip = load_clip(options.clip, device, "fp32")
    guesses = Guesses(clip, tokenizer_of(options.tokenizer or options.clip), vocabulary)
    recipe = Recipe(image_size=options.image_size, seed=options.seed)
    loader = load_images(options, recipe, teacher, Views(), shuffle=False)
    judge = Judge(
        teacher,
        **options.only("draws", "first", "settle", "timestep_range", "loss", "seed", "batch"),
    )
    captions = vocabulary if options.sets is None else read_sets(options.sets, vocabulary)
    judged = judge_images(
        judge, loader, captions, options.out, guesses, options.rounds, options.names, options.overwrite
    )
    if place is None or place.rank == 0:
        data: Any = loader.dataset
        names = dict(zip(data.ids.tolist(), data.names, strict=True)) if hasattr(data, "ids") else {}
        page = write_judged(judged, options.out, names, lambda keys: _pictures(loader, keys))
        for name, chance, _, accuracy, _, weight, draws in Summary(judged).rows():
            print(f"{name}: accuracy {accuracy} %, chance {chance} %; {weight} % carry weight; {draws} draws")
        print(judged.facts.accounting, page, sep="\n")
    return 0


def _pictures(loader: ImageLoader, keys: Sequence[int]) -> Mapping[int, Tensor]:
    """The images of these keys, as they were judged; without those that are gone."""
    data: Any = loader.dataset
    if hasattr(data, "ids"):
        items = (data[place] for place, key in enumerate(data.ids.tolist()) if key in keys)
        return {item["ids"]: item["images"] for item in items if isinstance(item, dict)}
    found: dict[int, Tensor] = {}
    for batch in loader:
        rows = zip(batch["ids"].tolist(), batch["images"], strict=True)
        found.update({key: image for key, image in rows if key in keys})
        if len(found) == len(keys):
            break
    return found
