"""Reads any model: its weights by open_clip's keys, and what it computes as transformers' configuration."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from diva_rs.clip.export.checks import check_layers, own_state
from diva_rs.clip.export.layouts import RULES, convert
from diva_rs.clip.facts import activation
from diva_rs.clip.libraries import open_clip, openai, timm
from diva_rs.clip.libraries.transformers import class_of, family_of
from diva_rs.clip.tower import HALF, OPENAI_MEAN, OPENAI_STD, Triple, three
from diva_rs.clip.wrappers import own_weights, unwrap
from diva_rs.errors import ConfigError

Family = Literal["clip", "siglip"]
Config = dict[str, Any]

HIGHEST = 2  # as eos_token_id: the text is read at the highest token number (transformers, modeling_clip.py)
_ACTIVATIONS = ("quick_gelu", "gelu", "gelu_pytorch_tanh")
_FULL: dict[str, Family] = {"CLIPModel": "clip", "SiglipModel": "siglip"}
_PIXELS = {"clip": (OPENAI_MEAN, OPENAI_STD), "siglip": (HALF, HALF)}


@dataclass(frozen=True)
class Source:
    """A CLIP or SigLIP in the terms that every layout shares."""

    family: Family
    state: dict[str, Tensor]  # by open_clip's keys
    vision: Config  # vision_config of transformers
    text: Config | None  # text_config
    processor: Config  # of the images: preprocessor_config.json


def read(model: nn.Module, vision_only: bool = False) -> Source:
    """A full model of any supported library; ConfigError if the other layouts cannot express it."""
    of_transformers = family_of(model) is not None
    return _of_transformers(model) if of_transformers else _of_modules(model, vision_only)


def preprocessor(
    family: Family,
    side: int,
    mean: Triple | None = None,
    std: Triple | None = None,
    crop: bool = True,
    resample: int = 3,
) -> Config:
    """The image processor's configuration; by default the family's. ``resample`` as in PIL: 3 is bicubic."""
    crop = crop and family == "clip"
    square = {"height": side, "width": side}
    config: Config = {
        "image_processor_type": "SiglipImageProcessor" if family == "siglip" else "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side} if crop else square,
        "resample": resample,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean or _PIXELS[family][0]),
        "image_std": list(std or _PIXELS[family][1]),
        "do_convert_rgb": True,
    }
    # LLaVA reads crop_size whether it crops or not.
    return {**config, "do_center_crop": crop, "crop_size": square} if family == "clip" else config


def _of_transformers(model: Any) -> Source:
    name = class_of(model)
    if name not in _FULL:
        raise ConfigError(f"{name} cannot be written in open_clip's layout: CLIPModel and SiglipModel can")
    family = _FULL[name]
    vision, text = model.config.vision_config, model.config.text_config
    for where, config in (("vision_config", vision), ("text_config", text)):
        if config.hidden_act not in _ACTIVATIONS:
            allowed = f"only {', '.join(_ACTIVATIONS)} can be exported"
            raise ConfigError(f"{where}.hidden_act is {config.hidden_act!r}: {allowed}")
    rules = RULES[family](vision.num_hidden_layers, text.num_hidden_layers)
    state = convert(own_state(own_weights(model)), [rule.reversed() for rule in rules], "open_clip")
    return Source(family, state, vision.to_dict(), text.to_dict(), preprocessor(family, vision.image_size))


def _of_modules(model: Any, vision_only: bool) -> Source:
    """A model of open_clip or of OpenAI's `clip`, from its own modules."""
    visual: Any = getattr(model, "visual", None)
    if not isinstance(visual, nn.Module):
        raise ConfigError(
            f"{type(model).__name__} is not a full CLIP: give the whole model of open_clip, transformers or "
            "OpenAI's clip (to_transformers(..., vision_only=True) leaves its text tower out)"
        )
    visual = unwrap(visual)
    check_layers(visual if vision_only else model)
    state = own_weights(model)
    if vision_only:
        state = {key: value for key, value in state.items() if key.startswith("visual.")}
    if timm.matches(visual):
        text = None if vision_only else _siglip_text(getattr(model, "text", None))
        return Source("siglip", state, *_siglip(visual, text))
    if open_clip.matches(visual) or openai.matches(visual):
        # CustomTextCLIP keeps in `text.` what CLIP keeps in itself.
        state = {key.removeprefix("text."): value for key, value in state.items()}
        return Source("clip", state, *_clip(visual, None if vision_only else _clip_text(model)))
    raise ConfigError(f"the vision tower is a {type(visual).__name__}: only a ViT can be exported")


def _clip(visual: Any, text: Config | None) -> tuple[Config, Config | None, Config]:
    if getattr(visual, "pool_type", "tok") != "tok":
        raise ConfigError(
            f"visual.pool_type is {visual.pool_type!r}: the other layouts read the class token only"
        )
    patch = _square(visual.conv1.kernel_size, "the patch")
    positions, width = (int(size) for size in visual.positional_embedding.shape)
    image = getattr(visual, "image_size", None) or getattr(visual, "input_resolution", None)
    side = _square(image or round((positions - 1) ** 0.5) * patch, "image_size")
    projection = {"projection_dim": int(visual.proj.shape[1])}
    vision = {
        **_blocks("visual", width, visual.transformer.resblocks, [visual.ln_pre, visual.ln_post]),
        **_images("clip", side, patch),
        **projection,
    }
    text = None if text is None else {**text, **projection}
    return vision, text, preprocessor("clip", side, *_pixels(visual, "clip"))


def _clip_text(model: Any) -> Config:
    tower = getattr(model, "text", model)
    text = _text(tower)
    if hasattr(tower, "attn_mask") and tower.attn_mask is None:
        raise ConfigError("the text tower has no causal mask: a CLIP of the other layouts has one")
    # open_clip's CLIP keeps pool_type as text_pool_type; OpenAI's has one way only.
    pool = getattr(tower, "pool_type", None) or getattr(model, "text_pool_type", "argmax")
    if pool not in ("argmax", "eos"):
        raise ConfigError(f"the text is pooled by {pool!r}: a CLIP of the other layouts reads the end token")
    end = HIGHEST
    if pool == "eos":
        end = int(getattr(tower, "eos_id", None) or model.text_eos_id)
        if end == HIGHEST:
            raise ConfigError(
                f"the text is read at token {end}, which transformers takes for the highest token number"
            )
    return {**text, "model_type": "clip_text_model", "bos_token_id": 0, "eos_token_id": end}


def _siglip_text(tower: Any) -> Config:
    text = _text(tower)
    if tower.attn_mask is not None or tower.use_pad_mask:
        raise ConfigError("the text tower masks tokens: a SigLIP of transformers lets each attend to all")
    if tower.pool_type != "last":
        raise ConfigError(
            f"the text is pooled by {tower.pool_type!r}: a SigLIP of transformers reads the last token"
        )
    # The token numbers are not read by the model; the defaults are not in every vocabulary.
    return {**text, "model_type": "siglip_text_model", "bos_token_id": None, "eos_token_id": 1}


def _text(tower: Any) -> Config:
    if not hasattr(getattr(tower, "transformer", None), "resblocks"):
        raise ConfigError(
            f"the text tower is a {type(tower).__name__}, which only its own library can hold: "
            "to_transformers(..., vision_only=True) exports the vision tower"
        )
    context, width = (int(size) for size in tower.positional_embedding.shape)
    return {
        **_blocks("text", width, tower.transformer.resblocks, [tower.ln_final]),
        "vocab_size": int(tower.token_embedding.weight.shape[0]),
        "max_position_embeddings": context,
        "pad_token_id": 1,
    }


def _siglip(visual: Any, text: Config | None) -> tuple[Config, Config | None, Config]:
    trunk: Any = visual.trunk
    pool: Any = getattr(trunk, "attn_pool", None)
    if pool is None or getattr(trunk, "global_pool", "") != "map" or getattr(trunk, "num_prefix_tokens", 1):
        raise ConfigError(
            f"the timm trunk {type(trunk).__name__} is not a SigLIP (MAP pooling, no class token): no other "
            "layout has it"
        )
    width = int(trunk.embed_dim)
    vision = _blocks("visual.trunk", width, trunk.blocks, [trunk.norm, pool.norm], [pool])
    side = _square(trunk.patch_embed.img_size, "image_size")
    vision.update(_images("siglip", side, _square(trunk.patch_embed.patch_size, "the patch")))
    mean, std, crop, resample = _pixels(visual, "siglip")
    if (mean, std) == (OPENAI_MEAN, OPENAI_STD):
        # open_clip sets OpenAI's on a SigLIP that comes from a file; its weights are trained on 0.5.
        mean, std = HALF, HALF
    text = None if text is None else {**text, "projection_size": width}
    return vision, text, preprocessor("siglip", side, mean, std, crop, resample)


def _images(family: Family, side: int, patch: int) -> Config:
    kind = f"{family}_vision_model"
    return {"image_size": side, "patch_size": patch, "num_channels": 3, "model_type": kind}


def _blocks(where: str, width: int, blocks: Any, norms: list[Any], pools: Iterable[Any] = ()) -> Config:
    """A stack of pre-norm transformer blocks of open_clip or timm, all alike, and timm's pooling."""
    mlps = [part.mlp for part in (*blocks, *pools)]

    def layers(*names: str) -> list[Any]:
        return [next((getattr(mlp, name) for name in names if hasattr(mlp, name)), None) for mlp in mlps]

    hidden, activations = layers("c_fc", "fc1"), layers("gelu", "act")
    if None in activations:
        raise ConfigError(f"{where}: no other layout has blocks with such an MLP")
    heads = [layer.num_heads for layer in (*(block.attn for block in blocks), *pools)]
    inside = ("ln_1", "ln_2", "norm1", "norm2")
    norms += [getattr(block, name) for block in blocks for name in inside if hasattr(block, name)]
    eps = [norm.eps for norm in norms if not isinstance(norm, nn.Identity)]
    return {
        "hidden_size": width,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": _alike(heads, where, "number of heads"),
        "intermediate_size": _alike(
            [getattr(layer, "out_features", None) for layer in hidden], where, "MLP's width"
        ),
        "hidden_act": _alike([_activation(layer, where) for layer in activations], where, "activation"),
        "layer_norm_eps": _alike(eps, where, "LayerNorm eps"),
    }


def _alike(values: Iterable[Any], where: str, what: str) -> Any:
    """The one value that all have."""
    found = set(values)
    if len(found) != 1:
        shown = ", ".join(sorted(map(str, found))) or "none"
        raise ConfigError(f"{where}: the {what} differs ({shown}): no other layout can express that")
    return found.pop()


def _activation(layer: nn.Module, where: str) -> str:
    """The activation by transformers' name."""
    name = activation(layer)
    if name not in _ACTIVATIONS:
        raise ConfigError(
            f"{where}: the activation is a {type(layer).__name__}: only QuickGELU and GELU can be exported"
        )
    return name


def _square(size: Any, what: str) -> int:
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if sides[0] != sides[1]:
        raise ConfigError(f"{what} is {sides[0]} x {sides[1]}: the other layouts have squares only")
    return int(sides[0])


def _pixels(visual: Any, family: Family) -> tuple[Triple, Triple, bool, int]:
    """Mean, std, whether to crop, and PIL's number of the interpolation, as open_clip keeps them."""
    cfg = getattr(visual, "preprocess_cfg", None) or {}
    resize = cfg.get("resize_mode", "shortest")
    if resize not in ("shortest", "squash"):
        raise ConfigError(f"resize_mode={resize!r}: the image processors of transformers do not pad")
    mean = three(cfg.get("mean", getattr(visual, "image_mean", None)), _PIXELS[family][0])
    std = three(cfg.get("std", getattr(visual, "image_std", None)), _PIXELS[family][1])
    return mean, std, resize == "shortest", 2 if cfg.get("interpolation") == "bilinear" else 3
