"""Reads models of open_clip and of OpenAI's `clip` from their own modules."""

from typing import Any

from torch import Tensor, nn

from diva_rs.clip.export.source import (
    ARGMAX,
    LAST,
    Blocks,
    Pixels,
    Source,
    Text,
    activation_of,
    alike,
    square,
)
from diva_rs.clip.libraries import open_clip as open_clip_tower
from diva_rs.clip.libraries import openai
from diva_rs.clip.libraries import timm as timm_siglip
from diva_rs.clip.tower import HALF, OPENAI_MEAN, OPENAI_STD, three
from diva_rs.errors import ConfigError


def read(model: nn.Module, state: dict[str, Tensor], vision_only: bool) -> Source:
    """A model of open_clip or OpenAI's `clip`.

    Raises:
        ConfigError: it computes something that no other layout has a word for; says what.
    """
    visual: Any = getattr(model, "visual", None)
    if not isinstance(visual, nn.Module):
        raise ConfigError(
            f"{type(model).__name__} is no full CLIP: give the whole model of open_clip, transformers or "
            "OpenAI's clip (to_transformers(..., vision_only=True) leaves its text tower out)"
        )
    text = None
    if vision_only:
        state = {key: value for key, value in state.items() if key.startswith("visual.")}
    if timm_siglip.matches(visual):
        if not vision_only:
            text = _siglip_text(model)
        return _siglip(visual, state, text)
    if open_clip_tower.matches(visual) or openai.matches(visual):
        if not vision_only:
            text = _clip_text(model)
            state = _without_text_prefix(state)
        return _clip(visual, state, text)
    raise ConfigError(f"the vision tower is a {type(visual).__name__}: only a ViT can be exported")


def _clip(visual: Any, state: dict[str, Tensor], text: Text | None) -> Source:
    if getattr(visual, "pool_type", "tok") != "tok":
        raise ConfigError(
            f"visual.pool_type is {visual.pool_type!r}: the other layouts read the class token only"
        )
    patch = square(visual.conv1.kernel_size, "the patch")
    positions, width = visual.positional_embedding.shape
    image = getattr(visual, "image_size", None) or getattr(visual, "input_resolution", None)
    return Source(
        family="clip",
        state=state,
        embed_dim=int(visual.proj.shape[1]),
        image=square(image or round((positions - 1) ** 0.5) * patch, "image_size"),
        patch=patch,
        vision=_resblocks(
            visual.transformer.resblocks, [visual.ln_pre, visual.ln_post], "visual", int(width)
        ),
        text=text,
        pixels=_pixels(visual, OPENAI_MEAN, OPENAI_STD),
    )


def _clip_text(model: Any) -> Text:
    tower = getattr(model, "text", model)
    _check_text(tower)
    if hasattr(tower, "attn_mask") and tower.attn_mask is None:
        raise ConfigError("the text tower has no causal mask: a CLIP of the other layouts has one")
    # open_clip's CLIP keeps pool_type as text_pool_type; OpenAI's knows one way only.
    pool = getattr(tower, "pool_type", None) or getattr(model, "text_pool_type", ARGMAX)
    if pool == "eos":
        pool = int(getattr(tower, "eos_id", None) or model.text_eos_id)
    elif pool != ARGMAX:
        raise ConfigError(f"the text is pooled by {pool!r}: a CLIP of the other layouts reads the end token")
    return _text(tower, pool)


def _siglip_text(model: Any) -> Text:
    tower: Any = getattr(model, "text", None)
    _check_text(tower)
    if tower.attn_mask is not None or tower.use_pad_mask:
        raise ConfigError("the text tower masks tokens: a SigLIP of transformers lets each attend to all")
    if tower.pool_type != LAST:
        raise ConfigError(
            f"the text is pooled by {tower.pool_type!r}: a SigLIP of transformers reads the last token"
        )
    return _text(tower, LAST)


def _check_text(tower: Any) -> None:
    if not hasattr(getattr(tower, "transformer", None), "resblocks"):
        raise ConfigError(
            f"the text tower is a {type(tower).__name__}, which only its own library can hold: "
            "to_transformers(..., vision_only=True) exports the vision tower"
        )


def _text(tower: Any, pool: str | int) -> Text:
    context, width = tower.positional_embedding.shape
    return Text(
        blocks=_resblocks(tower.transformer.resblocks, [tower.ln_final], "text", int(width)),
        context=int(context),
        vocab=int(tower.token_embedding.weight.shape[0]),
        pool=pool,
    )


def _siglip(visual: Any, state: dict[str, Tensor], text: Text | None) -> Source:
    trunk: Any = visual.trunk
    pool: Any = getattr(trunk, "attn_pool", None)
    if pool is None or getattr(trunk, "global_pool", "") != "map" or getattr(trunk, "num_prefix_tokens", 1):
        raise ConfigError(
            f"the timm trunk {type(trunk).__name__} is no SigLIP (MAP pooling, no class token): no other "
            "layout has it"
        )
    blocks = list(trunk.blocks)
    norms = [norm for block in blocks for norm in (block.norm1, block.norm2)] + [trunk.norm, pool.norm]
    layers = [("blocks.*.mlp.act", block.mlp.act) for block in blocks] + [("attn_pool.mlp.act", pool.mlp.act)]
    width = int(trunk.embed_dim)
    return Source(
        family="siglip",
        state=state,
        embed_dim=width,
        image=square(trunk.patch_embed.img_size, "image_size"),
        patch=square(trunk.patch_embed.patch_size, "the patch"),
        vision=Blocks(
            width=width,
            layers=len(blocks),
            heads=alike([pool.num_heads, *(b.attn.num_heads for b in blocks)], "the number of heads"),
            mlp=alike([m.fc1.out_features for m in (pool.mlp, *(b.mlp for b in blocks))], "the MLP's width"),
            activation=alike([activation_of(layer, where) for where, layer in layers], "the activation"),
            eps=alike([norm.eps for norm in norms], "LayerNorm eps"),
        ),
        text=text,
        pixels=_siglip_pixels(visual),
    )


def _resblocks(blocks: Any, norms: list[Any], where: str, width: int) -> Blocks:
    mlps = [block.mlp for block in blocks]
    norms = [norm for norm in norms if not isinstance(norm, nn.Identity)]
    norms += [norm for block in blocks for norm in (block.ln_1, block.ln_2)]
    if any(not hasattr(mlp, "gelu") for mlp in mlps):
        raise ConfigError(f"{where}: its blocks are no plain ones, and no other layout has them")
    return Blocks(
        width=width,
        layers=len(blocks),
        heads=alike([block.attn.num_heads for block in blocks], f"{where}: the number of heads"),
        mlp=alike([mlp.c_fc.out_features for mlp in mlps], f"{where}: the MLP's width"),
        activation=alike(
            [activation_of(mlp.gelu, f"{where}: mlp.gelu") for mlp in mlps], f"{where}: the activation"
        ),
        eps=alike([norm.eps for norm in norms], f"{where}: LayerNorm eps"),
    )


def _without_text_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """CustomTextCLIP keeps in `text.` what CLIP keeps in itself."""
    return {key.removeprefix("text."): value for key, value in state.items()}


def _pixels(visual: Any, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Pixels:
    cfg = getattr(visual, "preprocess_cfg", None) or {}
    resize = cfg.get("resize_mode", "shortest")
    if resize not in ("shortest", "squash"):
        raise ConfigError(f"resize_mode={resize!r}: the image processors of transformers do not pad")
    return Pixels(
        mean=three(cfg.get("mean", getattr(visual, "image_mean", None)), mean),
        std=three(cfg.get("std", getattr(visual, "image_std", None)), std),
        resize=resize,
        interpolation="bilinear" if cfg.get("interpolation") == "bilinear" else "bicubic",
    )


def _siglip_pixels(visual: Any) -> Pixels:
    pixels = _pixels(visual, HALF, HALF)
    # open_clip sets OpenAI's mean and std on a SigLIP that comes from a file; its weights are trained on 0.5.
    default = (pixels.mean, pixels.std) == (OPENAI_MEAN, OPENAI_STD)
    mean, std = (HALF, HALF) if default else (pixels.mean, pixels.std)
    return Pixels(mean, std, "squash", pixels.interpolation)
