"""A folder of transformers: configuration, weights, image processor and, if it is OpenAI's, tokenizer."""

import functools
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs._base.checkpoint import save_weights
from diva_rs._base.files import as_path, check_replaceable, make_folder, replacing, write_json, write_text
from diva_rs.clip.export.checks import check_dense, check_fresh, own_state
from diva_rs.clip.export.layouts import RULES, convert
from diva_rs.clip.export.source import Config, Family, Source, preprocessor, read
from diva_rs.clip.export.vocabulary import tokenizer_files
from diva_rs.clip.libraries.transformers import class_of, family_of, processor_of
from diva_rs.clip.wrappers import merged, own_weights
from diva_rs.errors import ConfigError

_IMAGES = "preprocessor_config.json"
_FILES = {
    *("config.json", "model.safetensors", _IMAGES),
    # of a processor that the caller gives
    *("added_tokens.json", "merges.txt", "processor_config.json", "special_tokens_map.json"),
    *("spiece.model", "tokenizer.json", "tokenizer_config.json", "vocab.json"),
}

_CLASSES = {  # full, and vision alone
    "clip": ("CLIPModel", "CLIPVisionModelWithProjection"),
    "siglip": ("SiglipModel", "SiglipVisionModel"),
}

# The configuration, the weights, the image processor's configuration.
Parts = tuple[Config, dict[str, Tensor], Config]


def to_transformers(
    clip: nn.Module, path: str | os.PathLike[str], *, vision_only: bool = False, processor: Any = None
) -> Path:
    """Write a folder for ``from_pretrained`` of transformers.

    From a full model the vision classes load as well, which is how LLaVA takes its vision tower:
    ``CLIPVisionModel.from_pretrained(path)`` and ``CLIPImageProcessor.from_pretrained(path)``. LLaVA picks
    the class by the folder's path: the name of a SigLIP's needs ``siglip`` in it, that of a CLIP's ``clip``
    and no ``siglip``. The keys are those that releases from 4.28 to 5.x load (tried with 4.28.1, 4.37.2,
    which LLaVA 1.5 needs, 4.50.3, 5.0.0 and 5.24.0; SigLIP from 4.37.2 on, and from 4.50.3 on if its towers
    differ in width). Raises ConfigError or WeightsError naming what transformers does not compute, DataError
    if the folder holds other files; then nothing has changed.

    Args:
        clip: an open_clip model over a ViT or a timm SigLIP, a ViT of OpenAI's `clip`, or a transformers CLIP
            or SigLIP, full or vision only. The adapters of a `PeftModel` are merged in a copy.
        path: the folder; an earlier export is replaced as a whole. It is returned.
        vision_only: leave the text tower out: ``CLIPVisionModelWithProjection`` or ``SiglipVisionModel``.
            From open_clip this also exports models whose text tower transformers cannot hold.
        processor: a processor, image processor or tokenizer of transformers to save with the model. The part
            that it leaves out is written: the image processor's configuration, as open_clip's model, the
            folder of a transformers model, or the family has it; and the tokenizer of a full model that uses
            OpenAI's vocabulary. Others (SigLIP's) are not part of a model, so give their tokenizer here.

    >>> clip, teacher, images = diva_rs.microworld.example()
    >>> import tempfile
    >>> folder = to_transformers(clip, tempfile.mkdtemp() + "/tower")
    >>> sorted(file.name for file in folder.iterdir())
    ['config.json', 'model.safetensors', 'preprocessor_config.json']
    """
    model = merged(clip)
    check_dense(model)
    family = family_of(model)
    if family is None:
        config, weights, images = _of_source(read(model, vision_only))
    else:
        config, weights, images = _of_transformers(model, family, vision_only)
    check_fresh(config, weights, model)
    folder = as_path(path)
    check_replaceable(folder, _FILES, "an export")
    make_folder(folder.parent)
    with replacing(folder) as beside:
        beside.mkdir()
        save_weights(beside / "model.safetensors", weights)
        write_json(beside / "config.json", config)
        if processor is not None:
            processor.save_pretrained(beside)
        if not any((beside / name).exists() for name in (_IMAGES, "processor_config.json")):
            write_json(beside / _IMAGES, images)
        if not (beside / "tokenizer_config.json").exists():
            for name, content in tokenizer_files(config).items():
                (write_text if isinstance(content, str) else write_json)(beside / name, content)
    return folder


def _of_transformers(model: Any, family: Family, vision_only: bool) -> Parts:
    """With the model's own configuration, and its weights by the keys that every release loads."""
    config, name, weights = model.config, class_of(model), own_state(own_weights(model))
    if vision_only and hasattr(model, "text_model"):
        kept = ("vision_model.", "visual_projection.")
        weights = {key: value for key, value in weights.items() if key.startswith(kept)}
        projected = "visual_projection.weight" in weights
        projection = {"projection_dim": config.projection_dim} if projected else {}
        name = name.replace("Model", "VisionModel") + ("WithProjection" if projected else "")
        config = type(config.vision_config)(**{**config.vision_config.to_dict(), **projection})
    vision = getattr(config, "vision_config", config)
    left_out = ("dtype", "torch_dtype", "transformers_version")
    content = {key: value for key, value in config.to_dict().items() if key not in left_out}
    content.update(architectures=[name], torch_dtype=_dtype(weights))
    if "vision_config" in content and "projection_dim" in content:
        # CLIPModel reads its own projection_dim; the classes that load one tower of it read the tower's.
        for tower in ("vision_config", "text_config"):
            content[tower]["projection_dim"] = content["projection_dim"]
    return content, weights, processor_of(model) or preprocessor(family, int(vision.image_size))


def _of_source(source: Source) -> Parts:
    vision, text = source.vision, source.text
    if source.family == "siglip" and text is not None and "logit_bias" not in source.state:
        raise ConfigError("this model has no logit_bias, so its text tower was not trained as a SigLIP's")
    layers = None if text is None else text["num_hidden_layers"]
    rules = RULES[source.family](vision["num_hidden_layers"], layers)
    weights = convert(source.state, rules, "transformers")
    full, alone = _CLASSES[source.family]
    config = dict(vision)
    if text is not None:
        config = {key: value for key, value in vision.items() if key == "projection_dim"}
        config.update(model_type=source.family, text_config=text, vision_config=vision)
    config.update(architectures=[alone if text is None else full], torch_dtype=_dtype(weights))
    return config, weights, source.processor


def _dtype(weights: dict[str, Tensor]) -> str:
    """The widest: from_pretrained converts all weights to it."""
    dtypes = (value.dtype for value in weights.values() if value.is_floating_point())
    return str(functools.reduce(torch.promote_types, dtypes)).removeprefix("torch.")
