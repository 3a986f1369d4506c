"""Reads CLIP and SigLIP of transformers: what they compute, and their weights by open_clip's keys."""

from dataclasses import fields
from typing import Any, Literal

from torch import Tensor

from diva_rs.clip.export.layouts import clip_rules, siglip_rules
from diva_rs.clip.export.rules import convert
from diva_rs.clip.export.source import ARGMAX, LAST, Blocks, Pixels, Source, TextTower, square
from diva_rs.clip.tower import HALF, OPENAI_MEAN, OPENAI_STD
from diva_rs.errors import ConfigError

_ACTIVATIONS = ("quick_gelu", "gelu", "gelu_pytorch_tanh")
_FULL: dict[str, Literal["clip", "siglip"]] = {"CLIPModel": "clip", "SiglipModel": "siglip"}
STANDARD = {
    "clip": Pixels(OPENAI_MEAN, OPENAI_STD, "shortest", "bicubic"),
    "siglip": Pixels(HALF, HALF, "squash", "bicubic"),
}


def own_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A transformers model's weights by the keys that every release from 4.28 to 5.x loads.

    Vision-only classes keep their parts in ``vision_model.`` up to 4.x and in themselves later; later
    releases load both. ``position_ids``, a counter that old releases stored, is left out: all create it.
    """
    state = {key: value for key, value in state.items() if not key.endswith("position_ids")}
    if any(key.startswith("vision_model.") for key in state):
        return state
    return {f"vision_model.{key}": value for key, value in state.items()}


def read(model: Any, state: dict[str, Tensor]) -> Source:
    """A transformers `CLIPModel` or `SiglipModel`; ConfigError if open_clip's layout cannot express it."""
    name = type(model).__name__
    if name not in _FULL:
        raise ConfigError(f"{name} cannot be written in open_clip's layout: CLIPModel and SiglipModel can")
    family = _FULL[name]
    vision, text = model.config.vision_config, model.config.text_config
    rules = clip_rules if family == "clip" else siglip_rules
    backward = [rule.reversed() for rule in rules(vision.num_hidden_layers, text.num_hidden_layers)]
    # eos_token_id 2 stands for the highest token number in transformers' CLIP (modeling_clip.py), and the
    # highest of the vocabulary is what it means in OpenAI's.
    highest = text.eos_token_id in (2, text.vocab_size - 1)
    pool = ARGMAX if highest else int(text.eos_token_id)
    return Source(
        family=family,
        state=convert(own_state(state), backward, "open_clip"),
        embed_dim=int(model.config.projection_dim if family == "clip" else vision.hidden_size),
        image=square(vision.image_size, "image_size"),
        patch=square(vision.patch_size, "patch_size"),
        vision=_blocks(vision, "vision_config"),
        text=TextTower(
            blocks=_blocks(text, "text_config"),
            context=text.max_position_embeddings,
            vocab=text.vocab_size,
            pool=LAST if family == "siglip" else pool,
        ),
        pixels=STANDARD[family],
    )


def _blocks(config: Any, where: str) -> Blocks:
    if config.hidden_act not in _ACTIVATIONS:
        raise ConfigError(
            f"{where}.hidden_act is {config.hidden_act!r}: only {', '.join(_ACTIVATIONS)} can be exported"
        )
    return Blocks(**{field.name: getattr(config, field.name) for field in fields(Blocks)})
