"""A folder of transformers: the configuration, the weights and the image processor's configuration."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from diva_rs._base.checkpoint import save_weights
from diva_rs._base.files import make_folder, replacing, write_json
from diva_rs.clip.export import from_modules
from diva_rs.clip.export.from_transformers import STANDARD, own_state
from diva_rs.clip.export.layouts import clip_rules, siglip_rules
from diva_rs.clip.export.rules import convert
from diva_rs.clip.export.source import ARGMAX, Pixels, Source, TextTower
from diva_rs.clip.libraries.transformers import family_of
from diva_rs.clip.wrappers import own_weights, unwrap
from diva_rs.errors import ConfigError, DataError

_FILES = {
    *("config.json", "model.safetensors", "preprocessor_config.json"),
    # of a processor that the caller gives
    *("added_tokens.json", "merges.txt", "processor_config.json", "special_tokens_map.json"),
    *("spiece.model", "tokenizer.json", "tokenizer_config.json", "vocab.json"),
}
_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # PIL.Image.Resampling

Parts = tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]
"""The configuration, the weights, the image processor's configuration."""


def to_transformers(
    clip: nn.Module, path: str | os.PathLike[str], *, vision_only: bool = False, processor: Any = None
) -> Path:
    """Write a folder for ``from_pretrained`` of transformers.

    From a full model, ``CLIPModel`` or ``SiglipModel``, the vision classes load as well, which is how LLaVA
    takes its vision tower: ``CLIPVisionModel.from_pretrained(path)`` and
    ``CLIPImageProcessor.from_pretrained(path)``. The keys are those that releases from 4.28 to 5.x load
    (tried with 4.28.1, 4.37.2, which LLaVA 1.5 needs, 4.50.3, 5.0.0 and 5.24.0; SigLIP from 4.37.2 on, and
    from 4.50.3 on if its towers differ in width).

    Args:
        clip: an open_clip model over a ViT or a timm SigLIP, a ViT of OpenAI's `clip`, or a transformers CLIP
            or SigLIP, full or vision only.
        path: the folder; an earlier export is replaced as a whole.
        vision_only: leave the text tower out: ``CLIPVisionModelWithProjection`` or ``SiglipVisionModel``.
            From open_clip this also exports models whose text tower transformers cannot hold.
        processor: a processor, image processor or tokenizer of transformers to save with the model. None
            writes the image processor's configuration: with the pixel statistics, size and resizing that
            open_clip keeps in the model, or those of the family.

    Returns:
        The folder.

    Raises:
        ConfigError: something that transformers' CLIP or SigLIP does not compute; names it.
        WeightsError: a weight that it has no place for, such as a layer scale; names it.
        DataError: the folder holds other files or cannot be written; it is unchanged.

    >>> import tempfile
    >>> folder = to_transformers(clip, tempfile.mkdtemp() + "/tower")
    >>> sorted(file.name for file in folder.iterdir())
    ['config.json', 'model.safetensors', 'preprocessor_config.json']
    """
    model, state = unwrap(clip), own_weights(clip)
    if family_of(model) is not None:
        config, weights, pixels = _of_transformers(model, state, vision_only)
    else:
        config, weights, pixels = _of_source(from_modules.read(model, state, vision_only))
    folder = Path(path).expanduser()
    if folder.is_file():
        raise DataError(f"{folder} is a file: a folder is written")
    others = {file.name for file in folder.iterdir()} - _FILES if folder.is_dir() else set()
    if others:
        raise DataError(f"{folder} holds {sorted(others)[0]!r}, which no export wrote: choose another folder")
    make_folder(folder.parent)
    with replacing(folder) as beside:
        beside.mkdir()
        save_weights(beside / "model.safetensors", weights)
        write_json(beside / "config.json", config)
        if processor is None:
            write_json(beside / "preprocessor_config.json", pixels)
        else:
            processor.save_pretrained(beside)
    return folder


def _of_transformers(model: Any, state: dict[str, Tensor], vision_only: bool) -> Parts:
    """With the model's own configuration, and its weights by the keys that every release loads."""
    config, name = model.config, type(model).__name__
    weights = own_state(state)
    if vision_only and hasattr(model, "text_model"):
        kept = ("vision_model.", "visual_projection.")
        weights = {key: value for key, value in weights.items() if key.startswith(kept)}
        projected = "visual_projection.weight" in weights
        projection = {"projection_dim": config.projection_dim} if projected else {}
        name = name.replace("Model", "VisionModel") + ("WithProjection" if projected else "")
        config = type(config.vision_config)(**{**config.vision_config.to_dict(), **projection})
    vision = getattr(config, "vision_config", config)
    family = family_of(model) or "clip"
    left_out = ("dtype", "torch_dtype", "transformers_version")
    content = {key: value for key, value in config.to_dict().items() if key not in left_out}
    content.update(architectures=[name], torch_dtype=_dtype(weights))
    if "vision_config" in content and "projection_dim" in content:
        # CLIPModel reads its own projection_dim; the classes that load one tower of it read the tower's.
        for tower in ("vision_config", "text_config"):
            content[tower]["projection_dim"] = content["projection_dim"]
    return content, weights, _preprocessor(family, int(vision.image_size), STANDARD[family])


def _of_source(source: Source) -> Parts:
    clip = source.family == "clip"
    layers = None if source.text is None else source.text.blocks.num_hidden_layers
    if not clip and source.text is not None and "logit_bias" not in source.state:
        raise ConfigError("this model has no logit_bias, so its text tower was not trained as a SigLIP's")
    rules = (clip_rules if clip else siglip_rules)(source.vision.num_hidden_layers, layers)
    weights = convert(source.state, rules, "transformers")
    projection = {"projection_dim": source.embed_dim} if clip else {}
    vision: dict[str, Any] = {
        **asdict(source.vision),
        "image_size": source.image,
        "patch_size": source.patch,
        "num_channels": 3,
        "model_type": f"{source.family}_vision_model",
        **projection,
    }
    config: dict[str, Any] = {"torch_dtype": _dtype(weights)}
    if source.text is None:
        name = "CLIPVisionModelWithProjection" if clip else "SiglipVisionModel"
        config.update(architectures=[name], **vision)
    else:
        config.update(
            architectures=["CLIPModel" if clip else "SiglipModel"],
            model_type=source.family,
            text_config=_text(source.text, source.embed_dim, clip),
            vision_config=vision,
            **projection,
        )
    return config, weights, _preprocessor(source.family, source.image, source.pixels)


def _text(text: TextTower, embed_dim: int, clip: bool) -> dict[str, Any]:
    config: dict[str, Any] = {
        **asdict(text.blocks),
        "vocab_size": text.vocab,
        "max_position_embeddings": text.context,
    }
    if not clip:
        # The token numbers are not read by the model; the defaults are not in every vocabulary.
        config.update(bos_token_id=None, eos_token_id=1, pad_token_id=1)
        return {**config, "model_type": "siglip_text_model", "projection_size": embed_dim}
    if text.pool == 2:
        raise ConfigError(
            "the text is read at token 2, which transformers takes for the highest token number"
        )
    # 2 stands for "at the highest token number", as open_clip and OpenAI read it; these are also the numbers
    # in OpenAI's own folders on the Hub.
    eos = 2 if text.pool == ARGMAX else text.pool
    config.update(bos_token_id=0, eos_token_id=eos, pad_token_id=1)
    return {**config, "model_type": "clip_text_model", "projection_dim": embed_dim}


def _preprocessor(family: str, side: int, pixels: Pixels) -> dict[str, Any]:
    square = {"height": side, "width": side}
    crop = pixels.resize == "shortest"
    name = "SiglipImageProcessor" if family == "siglip" else "CLIPImageProcessor"
    config: dict[str, Any] = {
        "image_processor_type": name,
        "do_resize": True,
        "size": {"shortest_edge": side} if crop else square,
        "resample": _RESAMPLE[pixels.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pixels.mean),
        "image_std": list(pixels.std),
        "do_convert_rgb": True,
    }
    if family == "clip":
        # LLaVA reads crop_size whether it crops or not.
        config.update(do_center_crop=crop, crop_size=square)
    return config


def _dtype(weights: dict[str, Tensor]) -> str:
    return str(next(value for key, value in weights.items() if "encoder" in key).dtype).removeprefix("torch.")
