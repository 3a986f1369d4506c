"""Every reader of files: a function that writes good files, and one that reads them."""

import argparse
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open_clip
import torch
import transformers

from builders.diffusion import tiny_pipeline
from builders.evaluations import mmvp, post_trained
from builders.judged import judged
from builders.mmvp import PlantedCLIP, mmvp_folder, preprocess, tokenize
from builders.pictures import encoded, write_tar
from builders.small import small_clip, small_teacher
from diva_rs import Recipe, Teacher, Trainer
from diva_rs._base.checkpoint import load_state, load_weights, save_state, save_weights, write_manifest
from diva_rs._base.files import write_json
from diva_rs.captions import Judgements, Vocabulary, read_sets
from diva_rs.cli.clips import load_clip
from diva_rs.cli.options import TrainOptions, settings
from diva_rs.clip.weights import weights_of
from diva_rs.data import LatentCache, folder_loader, shard_loader
from diva_rs.diffusion.loading import load_part
from diva_rs.errors import DivaError
from diva_rs.evaluation import mmvp_vlm, report
from diva_rs.run.callbacks import JsonLines
from diva_rs.run.evaluator import _read_rows
from diva_rs.run.folder import RunFolder

MODEL = "diva-fuzz-tiny"
_CONFIG = {
    "embed_dim": 20,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}
_HOST = (torch.device("cpu"), "fp32")


class FileReader(NamedTuple):
    """One way into the package for files."""

    make: Callable[[Path], Any]  # writes good files into an empty folder
    read: Callable[[Path], Any]  # reads everything in the folder that a user's call would
    weight: int  # its share of the cases
    seal: Callable[[Path], Any] | None = None  # corrects the checksums after damage, as an attacker would


def _checkpoint(folder: Path) -> None:
    trainer = Trainer(small_clip(), small_teacher(), Recipe(optimizer="adamw"))
    trainer.step(torch.rand(2, 3, 32, 32))
    save_state(folder / "checkpoint", trainer.state_dict())


@cache
def _trainer() -> Trainer:
    """One trainer for all cases."""
    return Trainer(small_clip(), small_teacher(), Recipe(optimizer="adamw"))


def _read_checkpoint(folder: Path) -> None:
    weights = _trainer().parameters().values()
    before = [weight.detach().clone() for weight in weights]
    try:
        state = load_state(folder / "checkpoint")
        Recipe.from_dict(state["recipe"])
        _trainer().load_state_dict(state)
    except DivaError:
        # As integers: NaN is not equal to itself.
        pairs = zip(before, weights, strict=True)
        same = all(torch.equal(old.view(torch.int32), new.view(torch.int32)) for old, new in pairs)
        assert same, "a checkpoint that raised has changed the weights"
        raise


def _scripted(folder: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Sequential(torch.nn.Linear(4, 4))), folder / "w.pt")


def _config(folder: Path) -> None:
    recipe = Recipe.named("diva-openai-vit-l-14-224").to_dict()
    lines = ['data = "photos"', 'clip = "ViT-B-32:openai"', "workers = 4", "progress = false", "", "[recipe]"]
    lines += [f"{name} = {json.dumps(value)}" for name, value in recipe.items() if value is not None]
    (folder / "run.toml").write_text("\n".join(lines) + "\n")


_NEEDED = {"clip": MODEL, "teacher": "t", "data": "d", "output_dir": "o"}


def _read_config(folder: Path) -> None:
    settings(argparse.Namespace(config=str(folder / "run.toml"), **_NEEDED), TrainOptions)


def _words(folder: Path) -> None:
    (folder / "words.toml").write_text(Vocabulary.photographs().to_toml())


def _caption_sets(folder: Path) -> None:
    one = {"id": 3, "name": "colour", "captions": ["a red car", "a blue car"], "words": ["red", "blue"]}
    rows = [one, {"file": "a/1.jpg", "caption": "two red cars on a table"}, {**one, "id": "b"}]
    (folder / "sets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _read_caption_sets(folder: Path) -> None:
    read_sets(folder / "sets.jsonl", Vocabulary.photographs())


def _read_judgements(folder: Path) -> None:
    found = Judgements.load(folder)
    for key in found:
        found[key], found.values(key)


_KINDS = ["jpeg", "png", "webp", "gif", "bmp", "tiff", "png", "ppm"]


def _images(folder: Path) -> None:
    (folder / "deep").mkdir()
    for number, kind in enumerate(_KINDS):
        (folder / ("deep" if number % 2 else "") / f"{number}.{kind}").write_bytes(
            encoded(number, (24, 20), kind)
        )


def _shard(folder: Path) -> None:
    members = []
    for number in range(4):
        kind = "png" if number % 2 else "jpeg"
        members += [(f"{number:03}.{kind}", encoded(number, (24, 20), kind)), (f"{number:03}.json", b"{}")]
    write_tar(folder / "0.tar", members)


def _read_images(folder: Path) -> None:
    for policy in ("skip", "raise"):
        list(folder_loader(folder, batch=2, size=16, workers=0, on_bad_image=policy))


def _read_shard(folder: Path) -> None:
    for policy in ("skip", "raise"):
        list(shard_loader(str(folder / "*.tar"), batch=2, size=16, workers=0, on_bad_image=policy))


def _run_folder(folder: Path) -> None:
    trainer = Trainer(small_clip(), small_teacher(), Recipe())
    run = RunFolder(folder / "run")
    run.begin(trainer.recipe, {"environment": {"host": "a"}}, 0)
    for step in (1, 2):
        JsonLines(run.metrics).on_log(step, {"loss": 0.5})
        run.save(trainer.state_dict(), step, keep=2)
    run.mark_best(1, 0.5)
    run.close()


def _read_run_folder(folder: Path) -> None:
    run = RunFolder(folder / "run")
    try:
        repr((run.recipe(), run.facts(), run.best(), run.rows(2)))
        run.restore()
    finally:
        run.close()


def _read_latents(folder: Path) -> None:
    cache = LatentCache.open(folder, teacher=small_teacher(), recipe=Recipe())
    cache = LatentCache.open(folder)
    repr((cache.describe(), cache.shape, len(cache)))
    for row in range(len(cache)):
        cache.read(np.array([row]))


def _seal_checkpoint(folder: Path) -> None:
    names = ("parameters.safetensors", "optimizer.safetensors", "state.json")
    write_manifest(folder / "checkpoint", names)


def _read_teacher(folder: Path) -> None:
    teacher = Teacher.of(folder)
    repr((teacher.latent_shape, teacher.image_size, teacher.describe(), len(teacher.schedule)))
    teacher.text("a cat")
    latents = teacher.encode(torch.zeros(1, 3, 32, 32))
    teacher.denoise(latents, torch.tensor([10]), torch.zeros(1, 8, teacher.condition_width))


def _transformers(folder: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPVisionConfig(num_hidden_layers=1, num_attention_heads=2, **sizes)
    transformers.CLIPVisionModel(config).save_pretrained(folder)


def _open_clip(folder: Path) -> None:
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": _CONFIG, "preprocess_cfg": {}}))
    save_weights(folder / "open_clip_model.safetensors", small_clip().state_dict())


def _pytorch(folder: Path) -> None:
    own = folder / f"{MODEL}.json"
    own.write_text(json.dumps(_CONFIG))
    if MODEL not in open_clip.list_models():
        open_clip.add_model_config(own)
    own.unlink()
    torch.save(small_clip().state_dict(), folder / "clip.pt")


def _read_mmvp(folder: Path) -> None:
    mmvp_vlm(PlantedCLIP(range(9)), preprocess, tokenize, folder).to_dict()


def _run(folder: Path) -> None:
    post_trained().save(folder / "run")
    for name, right in (("before", range(5)), ("after", range(9))):
        mmvp(right).to_json(folder / f"{name}.json")


def _read_run(folder: Path) -> None:
    evaluations = ([folder / "before.json"], [folder / "after.json"])
    report.write(folder / "run", folder / "out", before=evaluations[0], after=evaluations[1])


READERS: dict[str, FileReader] = {
    "checkpoint": FileReader(_checkpoint, _read_checkpoint, 12, _seal_checkpoint),
    "weights": FileReader(
        lambda folder: save_weights(folder / "w.safetensors", {"a": torch.rand(3, 2), "b": torch.ones(4)}),
        lambda folder: load_weights(folder / "w.safetensors"),
        12,
    ),
    "config": FileReader(_config, _read_config, 12),
    "vocabulary": FileReader(_words, lambda folder: Vocabulary.read(folder / "words.toml").to_toml(), 6),
    "caption sets": FileReader(_caption_sets, _read_caption_sets, 6),
    "judgements": FileReader(
        lambda folder: judged().save(folder),
        _read_judgements,
        8,
        lambda folder: write_manifest(folder, sorted({p.name for p in folder.iterdir()} - {"manifest.json"})),
    ),
    "images": FileReader(_images, _read_images, 15),
    "shard": FileReader(_shard, _read_shard, 15),
    "latents": FileReader(
        lambda folder: LatentCache.build([torch.rand(4, 3, 16, 16)], small_teacher(), folder),
        _read_latents,
        12,
        lambda folder: write_manifest(folder, ("index.safetensors", "facts.json")),
    ),
    "teacher": FileReader(lambda folder: tiny_pipeline().save_pretrained(folder), _read_teacher, 4),
    "tokenizer": FileReader(
        lambda folder: tiny_pipeline().tokenizer.save_pretrained(folder / "tokenizer"),
        lambda folder: load_part(str(folder), "tokenizer")(["a photo of a cat"]),
        4,
    ),
    "MMVP": FileReader(lambda folder: mmvp_folder(folder, pairs=1), _read_mmvp, 3),
    "report": FileReader(_run, _read_run, 6),
    "run folder": FileReader(_run_folder, _read_run_folder, 8),
    "evaluations": FileReader(
        lambda folder: write_json(folder / "e.json", [{"step": 0, "drift": 1.0}, {"step": 10, "drift": 0.9}]),
        lambda folder: _read_rows(folder / "e.json"),
        4,
    ),
    "torch.save": FileReader(
        lambda folder: torch.save({"state_dict": {"w": torch.ones(3)}}, folder / "w.pt"),
        lambda folder: weights_of(folder / "w.pt", "before"),
        6,
    ),
    "TorchScript": FileReader(_scripted, lambda folder: weights_of(folder / "w.pt", "before"), 4),
    "transformers CLIP": FileReader(_transformers, lambda folder: load_clip(str(folder), *_HOST), 4),
    "open_clip folder": FileReader(_open_clip, lambda folder: load_clip(str(folder), *_HOST), 4),
    "PyTorch weights": FileReader(_pytorch, lambda folder: load_clip(f"{MODEL}:{folder}/clip.pt", *_HOST), 4),
}
