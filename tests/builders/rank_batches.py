"""Runs over several ranks of each reader and method, which end like those of one rank."""

import os
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import diva_rs
from builders import genhancer as genhancers
from builders.dcr import stages
from builders.judged import judged
from builders.rank_train import train, written_from_now
from builders.small import images, small_clip
from builders.texts import tokenize
from builders.unclip import unclip_teacher
from diva_rs.captions import CaptionTerm, KeepTerm
from diva_rs.data import decode, folder, folder_loader, shard_loader


def photos(root: Path, count: int) -> Path:
    """A folder of ``count`` images of one colour each."""
    root.mkdir(exist_ok=True)
    for i in range(count):
        Image.new("RGB", (40, 40), (20 * i, 255 - 20 * i, 7 * i)).save(root / f"{i}.png")
    return root


def decoded_names() -> list[str]:
    """The names of the images that the readers decode from now on."""
    names: list[str] = []

    def noted(read: Any) -> Any:
        def noting(source: Any, name: str, *rest: Any) -> Any:
            names.append(Path(name).name)
            return read(source, name, *rest)

        return noting

    folder.decode, folder.decode_pixels = noted(decode.decode), noted(decode.decode_pixels)
    return names


def from_folder(place: Path, world: int) -> dict[str, Any]:
    """One pass over eleven images: one rank has six of them."""
    names = decoded_names()
    batches = folder_loader(place / "photos", batch=4, size=32, workers=0, scale=None)
    return {**train(batches, batch=8, steps=None), "decoded": names}


def from_shards(place: Path, world: int) -> dict[str, Any]:
    """One pass over shards of five, three and one images."""
    names = decoded_names()
    batches = shard_loader(str(place / "{0..2}.tar"), batch=2, size=32, workers=0, scale=None)
    return {**train(batches, batch=None, steps=None), "decoded": names}


def unequal(place: Path, world: int, **fields: Any) -> dict[str, Any]:
    """Batches of unequal sizes, one more for rank 0 than for rank 1. CLIP trains from step 2 on."""
    fields = {"batch": None, "steps": None, "projector_warmup": 1, **fields}
    sizes = (3, 1, 2, 5, 4, 1, 2)
    batches = [images(size, seed=size + i, dtype=torch.float64) for i, size in enumerate(sizes)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    named = [
        {"images": batch, "ids": list(range(start, start + len(batch)))}
        for batch, start in zip(batches, starts, strict=True)
    ]
    if world > 1:
        return train(named[int(os.environ["RANK"]) :: world], **fields)
    pairs = [torch.cat(batches[i : i + 2]) for i in range(0, len(batches), 2)]  # what two ranks take together
    return train(pairs, **fields)


def captions(place: Path, world: int) -> dict[str, Any]:
    """As `unequal`, on judgements of all images but three, and without a diffusion model."""
    clip = small_clip(torch.float64)
    terms = {
        "captions": (0.3, CaptionTerm(judged(18, missing=(1, 7, 13)), clip, tokenize)),
        "keep": (1.0, KeepTerm(clip, tokenize, ["a cat", "a dog"])),
    }
    return unequal(place, world, teacher=False, denoising=0, terms=terms, projector_warmup=0)


def un2clip(place: Path, world: int) -> dict[str, Any]:
    """un2CLIP's step: a pooled condition without a projector."""
    fields = {"recipe": "un2clip-openai-vit-l-14-224", "image_size": None, "density": None, "warmup": 0}
    return train(teacher=unclip_teacher(torch.float64), **fields)


def dcr(place: Path, world: int) -> dict[str, Any]:
    """DCR's two stages: negatives are the others of three images that lie on one rank."""
    recipe = diva_rs.Recipe.named("dcr-openai-vit-l-14-224")
    fields = {"recipe": recipe, "stages": stages(recipe, 3, 3, lr=1e-3), "contrast_group": 3, "low_rank": 4}
    fields |= {"image_size": None, "density": None, "warmup": 0, "anchor": 0.0, "steps": None, "batch": 6}
    batches = [images(3, seed=seed, dtype=torch.float64) for seed in range(4)]
    starts = range(0, 12, 3)
    named = [
        {"images": batch, "ids": list(range(start, start + 3))}
        for batch, start in zip(batches, starts, strict=True)
    ]
    if world > 1:
        return train(named[int(os.environ["RANK"]) :: world], **fields)
    pairs = [
        {"images": torch.cat([one["images"], other["images"]]), "ids": [*one["ids"], *other["ids"]]}
        for one, other in zip(named[::2], named[1::2], strict=True)
    ]
    return train(pairs, **fields)


def genhancer(place: Path, world: int) -> dict[str, Any]:
    """Two stages of three steps: slots of two widths, low rank, and a denoiser that trains."""
    fields = {"recipe": genhancers.recipe(), "density": None, "draws": 1, "warmup": 0, "steps": 6}
    return train(teacher=genhancers.teacher(torch.float64), **fields)


def own_batches(place: Path, world: int) -> dict[str, Any]:
    """A loader that gives each rank other batches already, without ids."""
    rank = int(os.environ.get("RANK", 0))
    parts = [[images(2, seed=10 * r + i, dtype=torch.float64) for i in range(4)] for r in range(2)]
    if world > 1:
        return train(parts[rank], batch=None, steps=4)
    # Sample i of rank r is number 2 i + r.
    turns = [torch.stack(pair, dim=1).flatten(0, 1) for pair in zip(*parts, strict=True)]
    return train(turns, batch=None, steps=4)


def with_files(place: Path, world: int) -> dict[str, Any]:
    """A run with a folder: what rank 1 writes is noted."""
    written = written_from_now()
    return {**train(output_dir=place / f"files-{world}", steps=5), "written": written}


def guarded(place: Path, world: int) -> dict[str, Any]:
    """How far the weights have moved is measured every two steps, and the guard ends the run for it."""
    start = [value.clone() for value in small_clip(torch.float64).visual.parameters()]
    moved: list[float] = []

    def distance(clip: Any) -> float:
        pairs = zip(clip.visual.parameters(), start, strict=True)
        moved.append(float(sum((now - then).square().sum() for now, then in pairs).sqrt()))
        return moved[-1]

    watched = {"evaluate": {"moved": distance}, "eval_every": 2, "best": "moved"}
    written = written_from_now()
    found = train(output_dir=place / f"guarded-{world}", guard={"moved": ("max", 0.3)}, **watched)
    return {**found, "written": written, "moved": moved}


def counted(place: Path, world: int) -> dict[str, Any]:
    """The sizes of all tensors that are added up over the ranks, in order."""
    sent: list[int] = []
    add_up = diva_rs.distributed.Ranks.add_up

    def noted(self: Any, tensor: torch.Tensor) -> None:
        sent.append(tensor.numel())
        add_up(self, tensor)

    diva_rs.distributed.Ranks.add_up = noted  # type: ignore[method-assign]
    found = train(steps=5)
    diva_rs.distributed.Ranks.add_up = add_up  # type: ignore[method-assign]
    return {**found, "sent": sent}
