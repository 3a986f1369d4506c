"""What a latent cache is valid for: the VAE that made it and how pixels were prepared for it."""

import contextlib
import hashlib
import json
from typing import Any

import torch
from torch import nn

from diva_rs._base.arguments import checked
from diva_rs._base.settings import integer
from diva_rs.data.latent_store import Store
from diva_rs.errors import ConfigError, DataError

Three = tuple[float, ...]  # one number per channel


def normalisation(recipe: Any, mean: Three, std: Three) -> tuple[Three, Three]:
    """CLIP's mean and std, or the recipe's own where it gives them."""
    return getattr(recipe, "clip_mean", None) or mean, getattr(recipe, "clip_std", None) or std


def input_size(recipe: Any, teacher: Any) -> tuple[int, int] | None:
    """Height and width of the VAE's input; None: whatever the images have."""
    side = getattr(recipe, "image_size", None)
    if side is not None:
        side = checked("image_size", side, integer(1))
        return side, side
    own = getattr(teacher, "image_size", None)
    return None if own is None else (int(own[0]), int(own[1]))


def view_of(
    recipe: Any,
    mean: Three,
    std: Three,
    size: tuple[int, int] | None,
    source: str | None,
    resampled: bool,
) -> dict[str, Any]:
    """What decides the VAE's input for given images, as far as it does."""
    convention = "clip" if source == "pixel_values" else recipe.pixels
    view: dict[str, Any] = {"source": source, "pixels": convention, "vae_pixels": recipe.vae_pixels}
    view |= {"image_size": list(size or ()), "resampled": resampled}
    if resampled:
        view |= {"resize": recipe.resize, "antialias": recipe.antialias}
    if convention == "clip" or recipe.vae_pixels == "official":
        view |= {"mean": list(mean), "std": list(std)}
    return view


def identity(teacher: Any) -> dict[str, Any]:
    """What makes latents of an image: the VAE's configuration and a fingerprint of its encoder's weights.

    Weights are rounded to bf16 first, so that a cache made in float32 serves a run in bf16. A teacher on
    pixels has neither; any other object is known by what it says of itself.
    """
    text = str(teacher.describe())
    if not hasattr(teacher, "modules"):
        return {"describe": text, "config": {}, "weights": _hash(text.encode())}
    vae = _vae(teacher)
    if vae is None:
        return {"describe": text, "config": {}, "weights": "none: works on pixels"}
    config = {k: v for k, v in dict(getattr(vae, "config", {})).items() if not k.startswith("_")}
    parts = []
    for name, weight in sorted(vae.state_dict().items()):
        if not name.startswith(("decoder.", "post_quant_conv.")):
            rounded = weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16)
            parts.append(f"{name} {tuple(weight.shape)} {_hash(rounded.numpy().tobytes())}".encode())
    plain = json.loads(json.dumps(config, default=str))
    return {"describe": text, "config": plain, "weights": _hash(b"\n".join(parts))}


def _vae(teacher: Any) -> nn.Module | None:
    with contextlib.suppress(ConfigError):
        _ = teacher.image_size  # a Teacher looks for its VAE when it first needs it
    for module in teacher.modules():
        if any(base.__name__ == "AutoencoderKL" for base in type(module).__mro__):
            return module  # type: ignore[no-any-return]
    return None


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def compare(store: Store, part: str, wanted: dict[str, Any]) -> None:
    """Raise DataError, saying what differs, unless a part of the store's manifest is as wanted."""
    saved = store.manifest[part]
    differing = sorted(key for key in saved.keys() | wanted.keys() if saved.get(key) != wanted.get(key))
    if differing:
        pairs = "; ".join(f"{key} was {saved.get(key)!r}, is {wanted.get(key)!r}" for key in differing)
        source = "another VAE" if part == "teacher" else "pixels prepared otherwise"
        raise DataError(
            f"latent cache {store.folder} was made by {source} ({pairs[:2000]}): "
            "build it again with overwrite=True"
        )
