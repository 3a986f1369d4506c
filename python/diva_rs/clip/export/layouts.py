"""The keys of each layout beside each other: open_clip's on the left, transformers' on the right.

OpenAI's `clip` has open_clip's keys for CLIP. Sources: open_clip/transformer.py,
timm/models/vision_transformer.py, transformers/models/clip/modeling_clip.py and siglip/modeling_siglip.py.
"""

from diva_rs.clip.export.rules import Rule, affine, chunked, joined, reshaped, same, transposed

_PARTS = ("weight", "bias")
_QKV = ("q_proj", "k_proj", "v_proj")


def clip_rules(vision_layers: int, text_layers: int | None) -> list[Rule]:
    """open_clip's `CLIP` and transformers' `CLIPModel`; without text, `CLIPVisionModelWithProjection`."""
    rules = [
        same("visual.class_embedding", "vision_model.embeddings.class_embedding"),
        same("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
        same("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        *affine("visual.ln_pre", "vision_model.pre_layrnorm"),
        *affine("visual.ln_post", "vision_model.post_layernorm"),
        transposed("visual.proj", "visual_projection.weight"),
        *_resblocks("visual.transformer", "vision_model", vision_layers),
    ]
    if text_layers is not None:
        rules += _text("", text_layers)
        rules += [transposed("text_projection", "text_projection.weight"), same("logit_scale", "logit_scale")]
    return rules


def siglip_rules(vision_layers: int, text_layers: int | None) -> list[Rule]:
    """open_clip's `CustomTextCLIP` over a timm SigLIP and transformers' `SiglipModel` or its vision part."""
    trunk, vision, pool, head = "visual.trunk", "vision_model", "visual.trunk.attn_pool", "vision_model.head"
    rules = [
        *affine(f"{trunk}.patch_embed.proj", f"{vision}.embeddings.patch_embedding"),
        reshaped(
            f"{trunk}.pos_embed",
            f"{vision}.embeddings.position_embedding.weight",
            to_left=lambda t: t.unsqueeze(0),
            to_right=lambda t: t.squeeze(0),  # (1, P, W) -> (P, W)
        ),
        *affine(f"{trunk}.norm", f"{vision}.post_layernorm"),
        same(f"{pool}.latent", f"{head}.probe"),
        *(joined((f"{pool}.q.{p}", f"{pool}.kv.{p}"), f"{head}.attention.in_proj_{p}") for p in _PARTS),
        *affine(f"{pool}.proj", f"{head}.attention.out_proj"),
        *affine(f"{pool}.norm", f"{head}.layernorm"),
        *affine(f"{pool}.mlp.fc1", f"{head}.mlp.fc1"),
        *affine(f"{pool}.mlp.fc2", f"{head}.mlp.fc2"),
    ]
    for i in range(vision_layers):
        left, right = f"{trunk}.blocks.{i}", f"{vision}.encoder.layers.{i}"
        rules += [
            *(chunked(f"{left}.attn.qkv.{p}", [f"{right}.self_attn.{x}.{p}" for x in _QKV]) for p in _PARTS),
            *affine(f"{left}.attn.proj", f"{right}.self_attn.out_proj"),
            *affine(f"{left}.norm1", f"{right}.layer_norm1"),
            *affine(f"{left}.norm2", f"{right}.layer_norm2"),
            *affine(f"{left}.mlp.fc1", f"{right}.mlp.fc1"),
            *affine(f"{left}.mlp.fc2", f"{right}.mlp.fc2"),
        ]
    if text_layers is not None:
        rules += _text("text.", text_layers)
        rules += affine("text.text_projection", "text_model.head")
        rules += [_scalar("logit_scale"), _scalar("logit_bias")]
    return rules


def _text(prefix: str, layers: int) -> list[Rule]:
    embeddings = "text_model.embeddings"
    return [
        same(f"{prefix}token_embedding.weight", f"{embeddings}.token_embedding.weight"),
        same(f"{prefix}positional_embedding", f"{embeddings}.position_embedding.weight"),
        *affine(f"{prefix}ln_final", "text_model.final_layer_norm"),
        *_resblocks(f"{prefix}transformer", "text_model", layers),
    ]


def _resblocks(ours: str, theirs: str, layers: int) -> list[Rule]:
    rules = []
    for i in range(layers):
        left, right = f"{ours}.resblocks.{i}", f"{theirs}.encoder.layers.{i}"
        qkv = [[f"{right}.self_attn.{x}.{p}" for x in _QKV] for p in _PARTS]
        rules += [
            *(chunked(f"{left}.attn.in_proj_{p}", keys) for p, keys in zip(_PARTS, qkv, strict=True)),
            *affine(f"{left}.attn.out_proj", f"{right}.self_attn.out_proj"),
            *affine(f"{left}.ln_1", f"{right}.layer_norm1"),
            *affine(f"{left}.ln_2", f"{right}.layer_norm2"),
            *affine(f"{left}.mlp.c_fc", f"{right}.mlp.fc1"),
            *affine(f"{left}.mlp.c_proj", f"{right}.mlp.fc2"),
        ]
    return rules


def _scalar(key: str) -> Rule:
    """() in open_clip, (1,) in transformers."""
    return reshaped(key, key, to_left=lambda t: t.reshape(()), to_right=lambda t: t.reshape(1))
