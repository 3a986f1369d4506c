"""Reads CLIP and SigLIP of transformers: what they compute, and their weights by open_clip's keys."""

from typing import Any

from torch import Tensor, nn

from diva_rs.clip.export.layouts import clip_rules, siglip_rules
from diva_rs.clip.export.rules import convert
from diva_rs.clip.export.source import ARGMAX, LAST, Blocks, Pixels, Source, Text, square
from diva_rs.clip.libraries.transformers import family_of
from diva_rs.clip.tower import HALF, OPENAI_MEAN, OPENAI_STD
from diva_rs.errors import ConfigError

_ACTIVATIONS = ("quick_gelu", "gelu", "gelu_pytorch_tanh")
STANDARD = {
    "clip": Pixels(OPENAI_MEAN, OPENAI_STD, "shortest", "bicubic"),
    "siglip": Pixels(HALF, HALF, "squash", "bicubic"),
}


def own_state(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A transformers model's weights by the keys that every release from 4.28 to 5.x loads.

    Vision-only classes keep their parts in ``vision_model.`` up to 4.x and in themselves later; later
    releases load both. ``position_ids``, a counter that old releases stored, is left out: all make it anew.
    """
    state = {key: value for key, value in state.items() if not key.endswith("position_ids")}
    if any(key.startswith("vision_model.") for key in state):
        return state
    return {f"vision_model.{key}": value for key, value in state.items()}


def read(model: nn.Module, state: dict[str, Tensor]) -> Source:
    """A transformers `CLIPModel` or `SiglipModel`.

    Raises:
        ConfigError: another class, or a setting that open_clip has no word for.
    """
    m: Any = model
    name, family = type(model).__name__, family_of(model)
    if name not in ("CLIPModel", "SiglipModel") or family is None:
        raise ConfigError(f"{name} cannot be written in open_clip's layout: CLIPModel and SiglipModel can")
    vision, text = m.config.vision_config, m.config.text_config
    rules = (clip_rules if family == "clip" else siglip_rules)(
        vision.num_hidden_layers, text.num_hidden_layers
    )
    target = "open_clip"
    return Source(
        family="clip" if family == "clip" else "siglip",
        state=convert(own_state(model, state), [rule.reversed() for rule in rules], target),
        embed_dim=int(m.config.projection_dim if family == "clip" else vision.hidden_size),
        image=square(vision.image_size, "image_size"),
        patch=square(vision.patch_size, "patch_size"),
        vision=_blocks(vision, "vision_config"),
        text=Text(
            blocks=_blocks(text, "text_config"),
            context=text.max_position_embeddings,
            vocab=text.vocab_size,
            pool=LAST if family == "siglip" else _pool(text),
        ),
        pixels=STANDARD[family],
    )


def _blocks(config: Any, where: str) -> Blocks:
    if config.hidden_act not in _ACTIVATIONS:
        raise ConfigError(
            f"{where}.hidden_act is {config.hidden_act!r}: exported are {', '.join(_ACTIVATIONS)}"
        )
    return Blocks(
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        mlp=config.intermediate_size,
        activation=config.hidden_act,
        eps=config.layer_norm_eps,
    )


def _pool(text: Any) -> str | int:
    # eos_token_id 2 stands for the highest token number in transformers' CLIP (modeling_clip.py), and the
    # highest of the vocabulary is what it means in OpenAI's.
    return ARGMAX if text.eos_token_id in (2, text.vocab_size - 1) else int(text.eos_token_id)
