"""What made the latents of a cache: the VAE, and the preparation of its input."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel

from diva_rs.data.augment import Views
from diva_rs.data.pixels import Three
from diva_rs.errors import DataError
from diva_rs.recipes.recipe import Recipe


class TeacherFacts(BaseModel, extra="forbid"):
    """The VAE that made the latents."""

    describe: str
    config: dict[str, Any]
    weights: str


class ViewFacts(BaseModel, extra="forbid"):
    """How images became the VAE's input. A setting without influence is None."""

    source: str
    pixels: str
    vae_pixels: str
    image_size: tuple[int, int]
    resampled: bool
    resize: str | None = None
    antialias: bool | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class Facts(BaseModel, extra="forbid"):
    """The content of ``facts.json``."""

    format: Literal["diva-rs latents 2"] = "diva-rs latents 2"
    teacher: TeacherFacts
    view: ViewFacts
    views: Views | None


def identity(teacher: Any) -> TeacherFacts:
    """The VAE's configuration and a fingerprint of its encoder's weights.

    Weights are rounded to bf16 first, so that a cache made in float32 serves a run in bf16. An object without
    ``vae`` is identified by ``describe()``.
    """
    text = str(teacher.describe())
    if not hasattr(teacher, "vae"):
        return TeacherFacts(describe=text, config={}, weights=_hash(text.encode()))
    if teacher.vae is None:
        return TeacherFacts(describe=text, config={}, weights="none: works on pixels")
    parts = []
    for name, weight in sorted(teacher.vae.state_dict().items()):
        if not name.startswith(("decoder.", "post_quant_conv.")):
            rounded = weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16)
            parts.append(f"{name} {tuple(weight.shape)} {_hash(rounded.numpy().tobytes())}".encode())
    config = {key: value for key, value in dict(teacher.vae.config).items() if not key.startswith("_")}
    config = json.loads(json.dumps(config, default=str))
    return TeacherFacts(describe=text, config=config, weights=_hash(b"\n".join(parts)))


def view_of(
    recipe: Recipe, mean: Three, std: Three, size: tuple[int, int], source: str, resampled: bool
) -> ViewFacts:
    """The settings that decide the VAE's input for given images."""
    convention = "clip" if source == "pixel_values" else recipe.pixels
    view = ViewFacts(
        source=source,
        pixels=convention,
        vae_pixels=recipe.vae_pixels,
        image_size=size,
        resampled=resampled,
    )
    if resampled:
        view.resize, view.antialias = recipe.resize, recipe.antialias
    if convention == "clip" or recipe.vae_pixels == "official":
        view.mean, view.std = recipe.clip_mean or mean, recipe.clip_std or std
    return view


def compare(folder: Path, source: str, saved: BaseModel, now: BaseModel) -> None:
    """Raise DataError, saying what differs, unless the facts are the same."""
    was, is_ = saved.model_dump(), now.model_dump()
    pairs = "; ".join(f"{key} was {was[key]!r}, is {is_[key]!r}" for key in was if was[key] != is_[key])
    if pairs:
        raise DataError(
            f"latent cache {folder} was made by {source} ({pairs[:2000]}): build it again with overwrite=True"
        )


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
