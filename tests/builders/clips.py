"""Tiny CLIP models with random weights, one per layout, and what their libraries answer."""

from collections.abc import Callable
from functools import partial
from typing import Any

import open_clip
import torch
import transformers
from open_clip.timm_model import TimmModel
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn

from builders import openai_clip

IMAGE, PATCH, WIDTH, PATCHES, EMBED = 32, 8, 32, 16, 24

Builder = Callable[..., nn.Module]

default_cfgs = generate_default_cfgs(
    {
        "diva_test_siglip": {"input_size": (3, IMAGE, IMAGE), "mean": (0.5,) * 3, "std": (0.5,) * 3},
        "diva_test_vit": {"input_size": (3, IMAGE, IMAGE), "classifier": "head"},
        "diva_test_eva": {"input_size": (3, IMAGE, IMAGE), "classifier": "head"},
    }
)
_TRUNK = {"img_size": IMAGE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 2, "num_heads": 2}
_TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
_VISION = {"image_size": IMAGE, "patch_size": PATCH, "width": WIDTH, "layers": 2, "head_width": 16}


@register_model
def diva_test_siglip(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """As timm's vit_*_siglip_*: no class token, MAP pooling, norm eps 1e-6."""
    own = {"class_token": False, "global_pool": "map", "norm_layer": partial(nn.LayerNorm, eps=1e-6)}
    return build_model_with_cfg(TimmViT, "diva_test_siglip", pretrained, **{**_TRUNK, **own, **kwargs})


@register_model
def diva_test_vit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """As timm's vit_*_clip_*, with a register token: class token, norm before the blocks."""
    own = {"pre_norm": True, "reg_tokens": 1, "init_values": 0.3}
    return build_model_with_cfg(TimmViT, "diva_test_vit", pretrained, **{**_TRUNK, **own, **kwargs})


@register_model
def diva_test_eva(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """As timm's eva02_*_clip_*: rotary positions, SwiGLU."""
    own = {"use_rot_pos_emb": True, "swiglu_mlp": True, "scale_mlp": True, "ref_feat_shape": (4, 4)}
    return build_model_with_cfg(Eva, "diva_test_eva", pretrained, **{**_TRUNK, **own, **kwargs})


def _open_clip(cls: str = "CLIP", embed: int = EMBED, quick_gelu: bool = False, **vision: Any) -> nn.Module:
    return getattr(open_clip, cls)(
        embed_dim=embed, vision_cfg={**_VISION, **vision}, text_cfg=_TEXT, quick_gelu=quick_gelu
    )


def _coca(embed: int = WIDTH, **vision: Any) -> nn.Module:
    pooling = {
        "attentional_pool": True,
        "attn_pooler_queries": 5,
        "attn_pooler_heads": 4,
        "output_tokens": True,
    }
    text = {**_TEXT, "width": embed, "embed_cls": True, "output_tokens": True}
    decoder = {"context_length": 8, "vocab_size": 64, "width": embed, "heads": 2, "layers": 1}
    return open_clip.CoCa(
        embed_dim=embed, multimodal_cfg=decoder, text_cfg=text, vision_cfg={**_VISION, **pooling, **vision}
    )


def _timm(trunk: str, pool: str, proj: str | None, bias: bool = False) -> nn.Module:
    vision = {
        "image_size": IMAGE,
        "timm_model_name": trunk,
        "timm_pool": pool,
        "timm_proj": proj,
        "timm_proj_bias": bias,
    }
    embed = WIDTH if proj == "none" else EMBED
    return open_clip.CustomTextCLIP(embed_dim=embed, vision_cfg=vision, text_cfg={**_TEXT, "width": 16})


def _openai_weights() -> nn.Module:
    """What open_clip makes of an OpenAI checkpoint."""
    state = openai_clip.CLIP(EMBED).state_dict()
    return open_clip.model.build_model_from_openai_state_dict(state, cast_dtype=torch.float32).float()


_HF_VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": IMAGE,
    "patch_size": PATCH,
}
_HF_TEXT = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
    "bos_token_id": 62,  # those of `builders.texts`
    "eos_token_id": 63,
    "pad_token_id": 0,
}


def _hf_vision(family: str, kind: str, **vision: Any) -> nn.Module:
    extra = {"projection_dim": EMBED} if kind.endswith("Projection") else {}
    config = getattr(transformers, f"{family}VisionConfig")(**{**_HF_VISION, **extra, **vision})
    return getattr(transformers, family + kind)(config)


def _hf_full(family: str, **vision: Any) -> nn.Module:
    text = {**_HF_TEXT, "projection_size": WIDTH} if family == "Siglip" else _HF_TEXT
    extra = {} if family == "Siglip" else {"projection_dim": EMBED}
    config = getattr(transformers, f"{family}Config")(
        text_config=text, vision_config={**_HF_VISION, **vision}, **extra
    )
    return getattr(transformers, f"{family}Model")(config)


_VARIANTS: dict[str, Callable[[], nn.Module]] = {
    "open_clip-gelu": _open_clip,
    "open_clip-quick-gelu": partial(_open_clip, quick_gelu=True),
    "open_clip-layer-scale": partial(_open_clip, ls_init_value=0.3),
    "open_clip-custom-text": partial(_open_clip, cls="CustomTextCLIP"),
    "open_clip-custom-block": partial(
        _open_clip, qk_norm=True, scale_heads=True, scale_attn=True, scale_fc=True
    ),
    "open_clip-no-ln-pre": partial(_open_clip, no_ln_pre=True),
    "open_clip-sin-cos": partial(_open_clip, pos_embed_type="sin_cos_2d"),
    "open_clip-tok-norm-after": partial(_open_clip, final_ln_after_pool=True),
    "open_clip-avg": partial(_open_clip, pool_type="avg"),
    "open_clip-avg-norm-after": partial(
        _open_clip, pool_type="avg", no_ln_pre=True, final_ln_after_pool=True
    ),
    "open_clip-no-pool": partial(_open_clip, pool_type="none"),
    "open_clip-oblong": partial(_open_clip, image_size=(32, 16)),
    "open_clip-coca": _coca,
    "open_clip-coca-narrow": partial(_coca, embed=EMBED),
    "open_clip-coca-avg": partial(_coca, pool_type="avg"),
    "open_clip-coca-parallel": partial(_coca, attentional_pool="parallel"),
    "open_clip-coca-cascade": partial(_coca, attentional_pool="cascade"),
    "open_clip-openai-weights": _openai_weights,
    "timm-siglip": partial(_timm, "diva_test_siglip", "map", "none"),
    "timm-siglip-linear": partial(_timm, "diva_test_siglip", "map", "linear"),
    "timm-siglip-linear-bias": partial(_timm, "diva_test_siglip", "map", "linear", bias=True),
    "timm-siglip-mlp": partial(_timm, "diva_test_siglip", "map", "mlp"),
    "timm-vit-token-head": partial(_timm, "diva_test_vit", "token", None),
    "timm-vit-avg-linear": partial(_timm, "diva_test_vit", "avg", "linear"),
    "timm-vit-avg-norm-after": partial(_timm, "diva_test_vit", "avg", None),
    "timm-vit-avg-none": partial(_timm, "diva_test_vit", "avg", "none"),
    "timm-eva-token-head": partial(_timm, "diva_test_eva", "token", None),
    "timm-eva-map-head": partial(_timm, "diva_test_eva", "map", None),
    "transformers-clip": partial(_hf_full, "CLIP"),
    "transformers-clip-gelu": partial(_hf_full, "CLIP", hidden_act="gelu"),
    "transformers-clip-eager": partial(_hf_full, "CLIP", attn_implementation="eager"),
    "transformers-clip-tuples": partial(_hf_full, "CLIP", return_dict=False),
    "transformers-clip-vision": partial(_hf_vision, "CLIP", "VisionModel"),
    "transformers-clip-projection": partial(_hf_vision, "CLIP", "VisionModelWithProjection"),
    "transformers-metaclip2": partial(_hf_full, "MetaClip2"),
    "transformers-siglip": partial(_hf_full, "Siglip"),
    "transformers-siglip-vision": partial(_hf_vision, "Siglip", "VisionModel"),
    "openai": partial(openai_clip.CLIP, EMBED),
}


def clip_variants() -> dict[str, Builder]:
    """Name -> ``builder(dtype=torch.float32, seed=0)``; new models in train mode, without dropout."""
    return {name: partial(_randomised, make) for name, make in _VARIANTS.items()}


def _randomised(
    make: Callable[[], nn.Module], dtype: torch.dtype = torch.float32, seed: int = 0
) -> nn.Module:
    """Weights that leave no gradient at zero or vanishingly small, as biases of 0 do."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().to(dtype).train()
        for parameter in model.parameters():
            if parameter.ndim == 0 or not parameter.requires_grad:
                continue
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 16
            noise = torch.randn_like(parameter) / fan_in**0.5
            with torch.no_grad():
                parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)
    return model


def pixels(model: nn.Module, batch: int = 2, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """A batch of normalised pixels at the size that `model` takes."""
    size = getattr(getattr(model, "visual", None), "image_size", (IMAGE, IMAGE))
    return torch.randn(batch, 3, *size, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def library_embedding(model: nn.Module, images: Tensor) -> Tensor:
    """(B, D): the image embedding as the model's own library computes it, before L2 normalisation."""
    if hasattr(model, "get_image_features"):
        features = model.get_image_features(images)
        return features if isinstance(features, Tensor) else features[1]  # a tensor up to 4.x
    if isinstance(model, transformers.CLIPVisionModelWithProjection):
        return model(images).image_embeds
    if isinstance(model, transformers.PreTrainedModel):
        return model(images).pooler_output
    if isinstance(model, open_clip.CoCa):
        features = model.encode_image(images, normalize=False)
    else:
        features = model.encode_image(images)
    return features if features.ndim == 2 else features[:, 0]  # pool_type "none" projects the whole sequence


def library_patches(model: nn.Module, images: Tensor) -> Tensor:
    """(B, P, D): the library's last patch tokens, each through the pooled token's norm and projection."""
    if isinstance(model, transformers.PreTrainedModel):
        vision = getattr(model, "vision_model", model)
        hidden = vision(images)[0]  # of a tuple or of a ModelOutput
        if "Siglip" in type(model).__name__:
            return hidden
        normed = vision.post_layernorm(hidden[:, 1:])
        return model.visual_projection(normed) if hasattr(model, "visual_projection") else normed
    visual: Any = model.visual
    if isinstance(visual, TimmModel):
        (tokens,) = visual.trunk.forward_intermediates(
            images, indices=1, norm=True, output_fmt="NLC", intermediates_only=True
        )
        return visual.head(visual.trunk.head(visual.trunk.fc_norm(tokens)))
    if isinstance(visual, openai_clip.VisionTransformer):
        seen: list[Tensor] = []
        handle = visual.transformer.register_forward_hook(lambda module, args, out: seen.append(out))
        visual(images)
        handle.remove()
        return visual.ln_post(seen[0].transpose(0, 1)[:, 1:]) @ visual.proj
    raw = visual.forward_intermediates(images, indices=1, output_fmt="NLC", intermediates_only=True)
    tokens = raw["image_intermediates"][-1]
    if visual.attn_pool is not None and visual.attn_pool_contrastive is None:
        alone = visual.attn_pool(tokens.flatten(0, 1).unsqueeze(1))[:, 0]  # each patch is the only one
        return visual.ln_post(alone).unflatten(0, tokens.shape[:2]) @ visual.proj
    return visual.ln_post(tokens) @ visual.proj
