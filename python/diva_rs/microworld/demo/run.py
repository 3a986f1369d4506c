"""The demo: a tiny CLIP with CLIP's blind spot, post-trained by the feedback of a tiny diffusion model.

Everything ships with the package, and both models are pretrained, so what the table says is a measurement.
"""

import copy
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import diva_rs.report as report
from diva_rs._base.files import make_folder, replacing
from diva_rs._base.optional import require
from diva_rs.evaluation import drift
from diva_rs.microworld import World, image_embeddings, new_clip, pairs, pictures
from diva_rs.microworld.demo.reconstruction import TIMESTEP, views, write_picture
from diva_rs.microworld.demo.scoring import Scores, Scoring, table
from diva_rs.microworld.pretrained import SHIPPED, Microworld
from diva_rs.recipes.recipe import Recipe
from diva_rs.run.post_training import post_train
from diva_rs.run.result import PostTrainResult

_IMAGES = 4096  # training images
_START = 1 << 20  # of the train split: from here on nothing was pretrained
_ENLARGED = 3  # times: the pictures of pairs
_STEPS = 450  # half of the study's, which take three minutes

# The best arm of the study on the validation split: see docs/microworld.md.
RECIPE: dict[str, Any] = {
    "optimizer": "adamw",
    "lr": 3e-4,
    "projector_lr": 1e-3,
    "projector_warmup": 60,
    "draws": 1,
    "batch": 16,
    "warmup": 10,
    "pixels": "clip",
    "anchor": 0.5,
    "condition": "class",
}

_NOTE = (
    "Demo on the microworld: 48 x 48 pixels, models of about a million parameters, pretrained by diva-rs "
    "itself; MMVP-VLM below is its miniature. Pairs, zero-shot images and probe images are scenes that no "
    "model was trained on and no setting was chosen on. One run of one CLIP: the intervals are over pairs "
    "and images, not over seeds."
)


@dataclass(frozen=True)
class Demo:
    """What the demo leaves: the result of `post_train`, CLIP's scores before and after (None if Ctrl-C ended
    the run), their table, and the run folder, with report.html and reconstructions.png."""

    result: PostTrainResult
    before: Scores
    after: Scores | None
    table: str
    folder: Path


def run(
    output_dir: str | Path | None = None,
    steps: int = _STEPS,
    progress: bool = True,
    world: str | Path = SHIPPED,
    per_pattern: int = 200,
    images: int = 2048,
) -> Demo:
    """Score the tiny CLIP, post-train it, score it again, and write the report.

    Args:
        output_dir: the run folder; by default a new folder in the system's temporary directory.
        world: a folder of ``python -m lab pretrain``; by default the checkpoints in the package.
        per_pattern: pairs of each pattern of mini-MMVP.
        images: scenes for zero-shot and the probes.

    >>> demo = run(steps=2, progress=False, per_pattern=2, images=64)  # doctest: +ELLIPSIS
    [...
    >>> demo.result.report["steps"]
    2
    """
    models = Microworld(world)
    folder = make_folder(output_dir or tempfile.mkdtemp(prefix="diva-rs-demo-"))
    clip, teacher, started = models.clip(), models.teacher(), time.perf_counter()
    original = copy.deepcopy(clip)
    # The study's settings, for images in [0, 1], which the inputs of CLIP and of the VAE are made from.
    recipe = Recipe(name="demo", log_every=5, **{**RECIPE, "pixels": "unit", "steps": steps})
    recipe = recipe.replace(projector_warmup=min(recipe.projector_warmup, steps // 5))

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - started:3.0f} s] {text}", flush=True)

    say("a tiny CLIP, a tiny diffusion model and their world")
    print(teacher.describe())
    scoring = Scoring(per_pattern, images)
    say(f"CLIP before: {len(scoring.pairs):,} pairs, {images:,} images, nine probes")
    before = scoring(clip, progress)
    print(before.mmvp)
    print(f"zero-shot objects: {before.zero_shot.accuracy:.1f} %")

    say(f"post-training: {recipe.steps} steps of {recipe.batch} images")
    result = post_train(clip, teacher, _loader(recipe), recipe, output_dir=folder, progress=progress)
    if result.interrupted:
        return Demo(result, before, None, "", folder)
    say("CLIP after: the same pairs and images")
    after = scoring(clip, progress)

    say("a projector for CLIP before, trained as long, to see what the denoiser makes of each")
    frozen = recipe.replace(projector_warmup=steps, anchor=0.0)
    projector = post_train(original, teacher, _loader(frozen), frozen, progress=progress).projector
    held = scoring.scenes.images(range(min(images, 256)))
    clips = {"CLIP before": (original, projector), "CLIP after": (clip, result.projector)}
    picture = folder / "reconstructions.png"
    write_picture(picture, views(teacher, models.vae, recipe, held, clips))

    say("the report")
    page = _report(result, before, after, scoring, folder, picture)
    _check_reload(folder / "clip.safetensors", scoring.scenes, after.embeddings)
    scores = table(before, after)
    say(f"done\n\n{scores}\n")
    print(f"report: {page}")
    print(f"reloaded in plain open_clip, with the same embeddings: {folder / 'clip.safetensors'}")
    return Demo(result, before, after, scores, folder)


class Scenes(World, Dataset[dict[str, Any]]):
    """A world whose items are {"images": (3, 48, 48) in [0, 1], "ids": int}."""

    def __repr__(self) -> str:
        return f"{len(self):,} scenes of the microworld's {self.split} split"

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {"images": self.images([number])[0], "ids": number}


def _loader(recipe: Recipe) -> "DataLoader[dict[str, Any]]":
    scenes, generator = Scenes("train", _IMAGES, start=_START), torch.Generator().manual_seed(recipe.seed)
    return DataLoader(scenes, batch_size=recipe.batch, shuffle=True, drop_last=True, generator=generator)


def _report(
    result: PostTrainResult, before: Scores, after: Scores, scoring: Scoring, folder: Path, picture: Path
) -> Path:
    flipped = before.mmvp.compare(after.mmvp)
    place = make_folder(folder / "pairs")
    listed = pairs(scoring.pairs, scoring.per_pattern)
    for number in (*flipped.gained, *flipped.lost):
        names = after.mmvp.pairs[number].images
        for pixels, name in zip(pictures(listed[number].scenes), names, strict=True):
            _save(place / name, pixels)
    sides = [replace(scores, mmvp=replace(scores.mmvp, root=str(place))) for scores in (before, after)]
    moved = drift(before.embeddings, after.embeddings)
    caption = (
        f"Images that no model has seen, with the noise of timestep {TIMESTEP}, and what the frozen denoiser "
        "makes of that in one step under the text alone, under CLIP before and under CLIP after, each with a "
        "projector trained for as many steps; under each name its loss, over "
        f"{min(len(scoring.scenes), 256)} images."
    )
    evidence = {"before": sides[0].results(), "after": [*sides[1].results(), moved]}
    return report.write(result, folder, **evidence, note=_NOTE, pictures={caption: picture})


def _save(path: Path, pixels: Tensor) -> None:
    image = require("PIL.Image", extra="demo")
    large = pixels.repeat_interleave(_ENLARGED, 1).repeat_interleave(_ENLARGED, 2)
    with replacing(path) as beside:
        image.fromarray((large * 255).round().byte().permute(1, 2, 0).numpy()).save(beside, format="PNG")


def _check_reload(file: Path, scenes: World, embeddings: Tensor) -> None:
    """What a user of open_clip does with the result: the weights are the trained ones, to the bit."""
    model: nn.Module = new_clip(1)
    require("open_clip", extra="open-clip").load_checkpoint(model, str(file), strict=True)
    if not torch.equal(image_embeddings(model, scenes.images, range(len(scenes))), embeddings):
        raise SystemExit(f"{file}: DIFFERENT EMBEDDINGS after loading in plain open_clip")
