"""Models to export, and their reload in a fresh process: ``python -m builders.exports FOLDER``."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
import transformers
from safetensors.torch import load_file, save_file
from timm.models import build_model_with_cfg, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from builders import clips, openai_clip

VIT: dict[str, Any] = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}
SIGLIP = {
    "embed_dim": 32,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 32,
        "timm_model_name": "diva_test_siglip",
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": VIT["text_cfg"]
    | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}},
}


@register_model
def diva_test_siglip_tanh(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """As transformers' SigLIP computes: tanh GELU."""
    own = {"class_token": False, "global_pool": "map", "norm_layer": partial(nn.LayerNorm, eps=1e-6)}
    own.update(act_layer="gelu_tanh", mlp_ratio=2.0)
    name = "diva_test_siglip_tanh"
    return build_model_with_cfg(VisionTransformer, name, pretrained, **{**clips._TRUNK, **own, **kwargs})


def _open_clip(config: dict[str, Any]) -> nn.Module:
    config = {key: value for key, value in config.items() if key != "custom_text"}
    cls = open_clip.CustomTextCLIP if config.get("init_logit_bias") else open_clip.CLIP
    return cls(**config)


def _transformers_clip() -> nn.Module:
    """Text read at the highest token number, which is what open_clip and OpenAI can say as well."""
    model = clips._hf_full("CLIP")
    model.config.text_config.eos_token_id = model.text_model.eos_token_id = 2
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": partial(_open_clip, VIT),
    "siglip": partial(_open_clip, SIGLIP),
    "openai": partial(openai_clip.CLIP, 24),
    "transformers-clip": _transformers_clip,
    "transformers-siglip": partial(clips._hf_full, "Siglip"),
}


def model(name: str) -> nn.Module:
    """The model in eval mode, with weights that leave nothing at zero."""
    return clips._randomised(MODELS[name]).eval()


def embeddings(model: nn.Module, side: int = 32, vocab: int = 64, context: int = 8) -> dict[str, Tensor]:
    """Image and text embeddings of fixed inputs; the end token is the highest number.

    On one thread, so that two processes agree to the bit on any machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(2, 3, side, side, generator=generator)
    text = torch.randint(3, vocab - 1, (2, context), generator=generator)
    text[:, context - 2] = vocab - 1
    with torch.no_grad():
        found = {"image": clips.library_embedding(model, images)}
        if hasattr(model, "encode_text"):
            found["text"] = model.encode_text(text)
        elif hasattr(model, "get_text_features"):
            features = model.get_text_features(text)
            found["text"] = features if isinstance(features, Tensor) else features[1]  # a tensor up to 4.x
    torch.set_num_threads(threads)
    return {key: value.contiguous() for key, value in found.items()}


def load(kind: str, path: str, name: str) -> nn.Module:
    """A model as its own library loads it; ``name`` is an open_clip name or a transformers class."""
    if kind == "open_clip":
        made, _, _ = open_clip.create_model_and_transforms(name, pretrained=path)
        return made.eval()
    if kind == "transformers":
        return getattr(transformers, name).from_pretrained(path).eval()
    state = torch.load(path, weights_only=True)
    made = openai_clip.CLIP(state["text_projection"].shape[1])
    made.load_state_dict(state)
    return made.eval()


def main(folder: Path) -> None:
    """Load each of jobs.json and write its embeddings beside it."""
    for config in folder.glob("small-*.json"):
        open_clip.add_model_config(config)
    for job, (kind, path, name) in json.loads((folder / "jobs.json").read_text()).items():
        save_file(embeddings(load(kind, path, name)), folder / f"{job}.embeddings")


def reloaded(folder: Path, job: str) -> dict[str, Tensor]:
    """What `main` found."""
    return load_file(folder / f"{job}.embeddings")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
