"""Reads models of open_clip and of OpenAI's `clip` from their own modules."""

from typing import Any

from torch import Tensor, nn

from diva_rs.clip.export.source import (
    ARGMAX,
    LAST,
    Blocks,
    Pixels,
    Source,
    TextTower,
    activation_of,
    alike,
    square,
)
from diva_rs.clip.libraries import open_clip, openai, timm
from diva_rs.clip.tower import HALF, OPENAI_MEAN, OPENAI_STD, three
from diva_rs.errors import ConfigError


def read(model: Any, state: dict[str, Tensor], vision_only: bool) -> Source:
    """A model of open_clip or OpenAI's `clip`; ConfigError if no other layout can express it."""
    visual: Any = getattr(model, "visual", None)
    if not isinstance(visual, nn.Module):
        raise ConfigError(
            f"{type(model).__name__} is not a full CLIP: give the whole model of open_clip, transformers or "
            "OpenAI's clip (to_transformers(..., vision_only=True) leaves its text tower out)"
        )
    if vision_only:
        state = {key: value for key, value in state.items() if key.startswith("visual.")}
    if timm.matches(visual):
        return _siglip(visual, state, None if vision_only else _siglip_text(getattr(model, "text", None)))
    if open_clip.matches(visual) or openai.matches(visual):
        # CustomTextCLIP keeps in `text.` what CLIP keeps in itself.
        state = {key.removeprefix("text."): value for key, value in state.items()}
        return _clip(visual, state, None if vision_only else _clip_text(model))
    raise ConfigError(f"the vision tower is a {type(visual).__name__}: only a ViT can be exported")


def _clip(visual: Any, state: dict[str, Tensor], text: TextTower | None) -> Source:
    if getattr(visual, "pool_type", "tok") != "tok":
        raise ConfigError(
            f"visual.pool_type is {visual.pool_type!r}: the other layouts read the class token only"
        )
    patch = square(visual.conv1.kernel_size, "the patch")
    positions, width = (int(size) for size in visual.positional_embedding.shape)
    image = getattr(visual, "image_size", None) or getattr(visual, "input_resolution", None)
    norms = [visual.ln_pre, visual.ln_post]
    return Source(
        family="clip",
        state=state,
        embed_dim=int(visual.proj.shape[1]),
        image=square(image or round((positions - 1) ** 0.5) * patch, "image_size"),
        patch=patch,
        vision=_resblocks(visual.transformer.resblocks, norms, "visual", width),
        text=text,
        pixels=_pixels(visual, OPENAI_MEAN, OPENAI_STD),
    )


def _clip_text(model: Any) -> TextTower:
    tower = getattr(model, "text", model)
    _check_text(tower)
    if hasattr(tower, "attn_mask") and tower.attn_mask is None:
        raise ConfigError("the text tower has no causal mask: a CLIP of the other layouts has one")
    # open_clip's CLIP keeps pool_type as text_pool_type; OpenAI's has one way only.
    pool = getattr(tower, "pool_type", None) or getattr(model, "text_pool_type", ARGMAX)
    if pool == "eos":
        pool = int(getattr(tower, "eos_id", None) or model.text_eos_id)
    elif pool != ARGMAX:
        raise ConfigError(f"the text is pooled by {pool!r}: a CLIP of the other layouts reads the end token")
    return _text(tower, pool)


def _siglip_text(tower: Any) -> TextTower:
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


def _text(tower: Any, pool: str | int) -> TextTower:
    context, width = (int(size) for size in tower.positional_embedding.shape)
    return TextTower(
        blocks=_resblocks(tower.transformer.resblocks, [tower.ln_final], "text", width),
        context=context,
        vocab=int(tower.token_embedding.weight.shape[0]),
        pool=pool,
    )


def _siglip(visual: Any, state: dict[str, Tensor], text: TextTower | None) -> Source:
    trunk: Any = visual.trunk
    pool: Any = getattr(trunk, "attn_pool", None)
    if pool is None or getattr(trunk, "global_pool", "") != "map" or getattr(trunk, "num_prefix_tokens", 1):
        raise ConfigError(
            f"the timm trunk {type(trunk).__name__} is not a SigLIP (MAP pooling, no class token): no other "
            "layout has it"
        )
    blocks = list(trunk.blocks)
    norms = [norm for block in blocks for norm in (block.norm1, block.norm2)] + [trunk.norm, pool.norm]
    mlps = [("blocks.*.mlp", block.mlp) for block in blocks] + [("attn_pool.mlp", pool.mlp)]
    attentions = [pool, *(block.attn for block in blocks)]
    activations = [activation_of(mlp.act, f"{where}.act") for where, mlp in mlps]
    width = int(trunk.embed_dim)
    pixels = _pixels(visual, HALF, HALF)
    # open_clip sets OpenAI's on a SigLIP that comes from a file; its weights are trained on 0.5.
    default = (pixels.mean, pixels.std) == (OPENAI_MEAN, OPENAI_STD)
    mean, std = (HALF, HALF) if default else (pixels.mean, pixels.std)
    return Source(
        family="siglip",
        state=state,
        embed_dim=width,
        image=square(trunk.patch_embed.img_size, "image_size"),
        patch=square(trunk.patch_embed.patch_size, "the patch"),
        vision=Blocks(
            hidden_size=width,
            num_hidden_layers=len(blocks),
            num_attention_heads=alike([m.num_heads for m in attentions], "the number of heads"),
            intermediate_size=alike([mlp.fc1.out_features for _, mlp in mlps], "the MLP's width"),
            hidden_act=alike(activations, "the activation"),
            layer_norm_eps=alike([norm.eps for norm in norms], "LayerNorm eps"),
        ),
        text=text,
        pixels=Pixels(mean, std, "squash", pixels.interpolation),
    )


def _resblocks(blocks: Any, norms: list[Any], where: str, width: int) -> Blocks:
    mlps = [block.mlp for block in blocks]
    norms = [norm for norm in norms if not isinstance(norm, nn.Identity)]
    norms += [norm for block in blocks for norm in (block.ln_1, block.ln_2)]
    if any(not hasattr(mlp, "gelu") for mlp in mlps):
        raise ConfigError(f"{where}: no other layout has blocks with such an MLP")
    activations = [activation_of(mlp.gelu, f"{where}: mlp.gelu") for mlp in mlps]
    return Blocks(
        hidden_size=width,
        num_hidden_layers=len(blocks),
        num_attention_heads=alike(
            [block.attn.num_heads for block in blocks], f"{where}: the number of heads"
        ),
        intermediate_size=alike([mlp.c_fc.out_features for mlp in mlps], f"{where}: the MLP's width"),
        hidden_act=alike(activations, f"{where}: the activation"),
        layer_norm_eps=alike([norm.eps for norm in norms], f"{where}: LayerNorm eps"),
    )


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
