"""The keys of each layout beside each other: open_clip's on the left, transformers' on the right.

OpenAI's `clip` has open_clip's keys for CLIP. Sources: open_clip/transformer.py,
timm/models/vision_transformer.py, transformers/models/clip/modeling_clip.py and siglip/modeling_siglip.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diva_rs.errors import WeightsError

Reshape = Callable[[list[Tensor]], list[Tensor]]

_PARTS = ("weight", "bias")
_QKV = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class Rule:
    """Some keys of the left layout are some keys of the right one, through reshapes that lose nothing."""

    left: tuple[str, ...]
    right: tuple[str, ...]
    forward: Reshape = list
    backward: Reshape = list

    def reversed(self) -> "Rule":
        """The rule from right to left."""
        return Rule(self.right, self.left, self.backward, self.forward)


def convert(state: Mapping[str, Tensor], rules: Sequence[Rule], target: str) -> dict[str, Tensor]:
    """``state``, by the left names of the rules, under the names of another layout; strict both ways.

    A key without a rule, or one that a rule needs and ``state`` lacks, is an error that names it and
    ``target``, the other layout.

    >>> weights = {"attn.in_proj_bias": torch.arange(6.0)}
    >>> rules = [chunked("attn.in_proj_bias", ("q.bias", "k.bias", "v.bias"))]
    >>> there = convert(weights, rules, "transformers")
    >>> there["k.bias"]
    tensor([2., 3.])
    >>> back = convert(there, [rule.reversed() for rule in rules], "open_clip")
    >>> torch.equal(back["attn.in_proj_bias"], weights["attn.in_proj_bias"])
    True
    """
    rest, found = dict(state), dict[str, Tensor]()
    for rule in rules:
        missing = [key for key in rule.left if key not in rest]
        if missing:
            raise WeightsError(f"this model has no {missing[0]}, which the {target} layout needs")
        tensors = rule.forward([rest.pop(key) for key in rule.left])
        found.update(zip(rule.right, tensors, strict=True))
    if rest:
        more = f" (and {len(rest) - 1} more keys)" if len(rest) > 1 else ""
        raise WeightsError(f"{min(rest)}{more} has no place in the {target} layout, which cannot compute it")
    return found


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
        Rule(  # (1, P, W) and (P, W)
            (f"{trunk}.pos_embed",),
            (f"{vision}.embeddings.position_embedding.weight",),
            lambda t: [t[0].squeeze(0)],
            lambda t: [t[0].unsqueeze(0)],
        ),
        *affine(f"{trunk}.norm", f"{vision}.post_layernorm"),
        same(f"{pool}.latent", f"{head}.probe"),
        *(_joined((f"{pool}.q.{p}", f"{pool}.kv.{p}"), f"{head}.attention.in_proj_{p}") for p in _PARTS),
        *affine(f"{pool}.proj", f"{head}.attention.out_proj"),
        *affine(f"{pool}.norm", f"{head}.layernorm"),
        *affine(f"{pool}.mlp.fc1", f"{head}.mlp.fc1"),
        *affine(f"{pool}.mlp.fc2", f"{head}.mlp.fc2"),
    ]
    names = {"attn.proj": "self_attn.out_proj", "norm1": "layer_norm1", "norm2": "layer_norm2"}
    names |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    for i in range(vision_layers):
        rules += _block(f"{trunk}.blocks.{i}", f"{vision}.encoder.layers.{i}", "attn.qkv.", names)
    if text_layers is not None:
        rules += _text("text.", text_layers)
        rules += affine("text.text_projection", "text_model.head")
        rules += [_scalar("logit_scale"), _scalar("logit_bias")]
    return rules


RULES: dict[str, Callable[[int, int | None], list[Rule]]] = {"clip": clip_rules, "siglip": siglip_rules}


def same(left: str, right: str) -> Rule:
    """One tensor under two names."""
    return Rule((left,), (right,))


def affine(left: str, right: str) -> list[Rule]:
    """Weight and bias of one layer under two names."""
    return [same(f"{left}.{part}", f"{right}.{part}") for part in _PARTS]


def transposed(left: str, right: str) -> Rule:
    """A matrix (W, D) that the right layout keeps as the weight (D, W) of an nn.Linear."""
    return Rule((left,), (right,), lambda t: [t[0].T], lambda t: [t[0].T])


def chunked(left: str, right: Sequence[str]) -> Rule:
    """Query, key and value: stacked along axis 0 on the left, tensors of one size on the right."""
    parts = len(right)
    return Rule((left,), tuple(right), lambda t: list(t[0].chunk(parts)), lambda t: [torch.cat(t)])


def _joined(left: tuple[str, str], right: str) -> Rule:
    """A query and a (key, value) pair on the left, stacked along axis 0 on the right."""

    def apart(tensors: list[Tensor]) -> list[Tensor]:
        rows = tensors[0].shape[0] // 3
        return [tensors[0][:rows], tensors[0][rows:]]

    return Rule(left, (right,), lambda t: [torch.cat(t)], apart)


def _scalar(key: str) -> Rule:
    """() in open_clip, (1,) in transformers."""
    return Rule((key,), (key,), lambda t: [t[0].reshape(1)], lambda t: [t[0].reshape(())])


def _text(prefix: str, layers: int) -> list[Rule]:
    embeddings = "text_model.embeddings"
    return [
        same(f"{prefix}token_embedding.weight", f"{embeddings}.token_embedding.weight"),
        same(f"{prefix}positional_embedding", f"{embeddings}.position_embedding.weight"),
        *affine(f"{prefix}ln_final", "text_model.final_layer_norm"),
        *_resblocks(f"{prefix}transformer", "text_model", layers),
    ]


def _resblocks(ours: str, theirs: str, layers: int) -> list[Rule]:
    names = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2"}
    names |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    rules: list[Rule] = []
    for i in range(layers):
        rules += _block(f"{ours}.resblocks.{i}", f"{theirs}.encoder.layers.{i}", "attn.in_proj_", names)
    return rules


def _block(left: str, right: str, qkv: str, names: Mapping[str, str]) -> list[Rule]:
    """One transformer block: its attention's input, then its other layers by name."""
    inputs = [chunked(f"{left}.{qkv}{p}", [f"{right}.self_attn.{x}.{p}" for x in _QKV]) for p in _PARTS]
    layers = [affine(f"{left}.{ours}", f"{right}.{theirs}") for ours, theirs in names.items()]
    return [*inputs, *(rule for layer in layers for rule in layer)]
