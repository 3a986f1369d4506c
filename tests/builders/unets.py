"""Small UNets of every kind that has a native network, with inputs for both."""

from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from builders.diffusion import TEXT_WIDTH, tiny_unet
from diva_rs._native import Network
from diva_rs.diffusion import NativePlan
from diva_rs.diffusion.families.text_time import TextTime
from diva_rs.native.unet import UNET

_CROSS = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
_CROSS_UP = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D")

_EVERYWHERE = {"down_block_types": _CROSS, "up_block_types": _CROSS_UP}
_THREE = {
    "block_out_channels": (8, 16, 32),
    "down_block_types": (*_CROSS, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *_CROSS_UP),
}
_FOUR = {
    "block_out_channels": (8, 8, 8, 16),
    "down_block_types": (*_CROSS, _CROSS[0], "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *_CROSS_UP, _CROSS_UP[0]),
    "attention_head_dim": 2,
}
_PLAIN_FIRST = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
_ONE = {"block_out_channels": (16,), "down_block_types": _CROSS[:1], "up_block_types": _CROSS_UP[:1]}
_DEPTHS = {
    **_EVERYWHERE,
    "layers_per_block": 2,
    "transformer_layers_per_block": ((1, 2), (3, 1)),
    "reverse_transformer_layers_per_block": ((1, 2, 1), (2, 1, 3)),
}
_ODD_WIDTH = {"block_out_channels": (15, 30), "norm_num_groups": 5, "attention_head_dim": 5}

# name: (kind of builders.diffusion, changes of its configuration, latent size)
VARIANTS: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "sd1": ("sd1", {}, (8, 8)),
    "sd1-three-levels": ("sd1", {**_THREE, "layers_per_block": 2}, (8, 16)),
    "sd1-classic-attention": ("sd1", {}, (8, 8)),
    "sd2": ("sd2", {}, (8, 8)),
    "sd2-v": ("sd2-v", {}, (8, 8)),
    "sdxl": ("sdxl", {}, (8, 12)),
    "sdxl-given": ("sdxl", {}, (8, 8)),
    "sdxl-depths": ("sdxl", _DEPTHS, (4, 4)),
    "unclip": ("unclip", {}, (8, 8)),
    "unclip-noise-level": ("unclip", {}, (8, 8)),
    "unclip-simple": ("unclip", {"class_embed_type": "simple_projection"}, (8, 8)),
    "pixel": ("pixel", {}, (8, 8)),
    "learned-variance": ("sd1", {"out_channels": 8}, (8, 8)),
    "odd-size": ("sd1", _THREE, (7, 9)),
    "odd-size-at-the-second-level": ("sd1", _THREE, (6, 10)),
    "28-at-four-levels": ("sd2", _FOUR, (28, 28)),
    "downsample-padding-0": ("sd1", {"downsample_padding": 0}, (8, 6)),
    "downsample-padding-0-odd": ("sd1", {"downsample_padding": 0}, (7, 9)),
    "layers-differ": ("sd2", {**_EVERYWHERE, "layers_per_block": (1, 2)}, (4, 4)),
    "heads-differ": ("sd2", {**_EVERYWHERE, "attention_head_dim": (1, 8)}, (4, 4)),
    "heads-that-do-not-divide": ("sd1", {"attention_head_dim": 3}, (8, 8)),
    "plain-first": ("sd1", _PLAIN_FIRST, (8, 8)),
    "one-level": ("sd1", _ONE, (5, 5)),
    "no-mid-block": ("sd1", {"mid_block_type": None}, (8, 8)),
    "mid-block-scaled": ("sd1", {"mid_block_scale_factor": 1.5}, (8, 8)),
    "scale-shift": ("sd1", {"resnet_time_scale_shift": "scale_shift"}, (8, 8)),
    "centered": ("sd1", {"center_input_sample": True}, (8, 8)),
    "other-sinusoids": ("sdxl", {"flip_sin_to_cos": False, "freq_shift": 1}, (8, 8)),
    "odd-sinusoids": ("sd1", _ODD_WIDTH, (8, 8)),
    "time-embedding-dim": ("sd1", {"time_embedding_dim": 24}, (8, 8)),
    "other-norms": ("sd1", {"norm_num_groups": 8, "norm_eps": 1e-3}, (8, 8)),
    "swish": ("sd1", {"act_fn": "swish"}, (8, 8)),
}


def native_unet(
    unet: nn.Module,
    text: Tensor | None = None,
    added: TextTime | None = None,
    checkpoint: bool = False,
    exact: nn.Module | None = None,
    labels: dict[str, Tensor] | None = None,
) -> Network:
    """The native network with the fixed inputs that its family would give it."""
    weight = next(unet.parameters())
    fields, fixed = (None, {}) if added is None else added.native(weight)
    fixed |= labels or {}
    if text is not None:
        fixed["encoder_hidden_states"] = text
    plan = NativePlan("unet_2d_condition", {"text_time": fields}, fixed)
    return UNET.build(unet, plan, checkpoint, exact)


class Case:
    """A UNet with noise in every weight, the native one beside it, and inputs for both."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float64, checkpoint: bool = False) -> None:
        kind, changes, self.size = VARIANTS[name]
        # Drawn in float32 first, so that a variant has the same weights in every dtype.
        self.unet: Any = stirred(tiny_unet(kind, **changes)).to(dtype).eval()
        if name == "sd1-classic-attention":
            self.unet.set_attn_processor(AttnProcessor())
        self.text = torch.randn(1, 7, TEXT_WIDTH).to(dtype)
        self.given = {}
        if name == "sdxl-given":
            self.given = {
                "text_embeds": torch.randn(1, TEXT_WIDTH).to(dtype),
                "time_ids": torch.tensor([[64, 80, 3, 4, 56, 48]]),
            }
        self.added = None
        if self.unet.config.addition_embed_type is not None:
            self.added = TextTime(self.unet.config, self.given, lambda: 8)
        classes = self.unet.config.class_embed_type is not None
        text = self.text if classes else None
        self.labels: dict[str, Tensor] = {}
        if name == "unclip-noise-level":
            self.labels = {"class_scale": torch.rand(1, 10), "class_shift": torch.randn(1, 20)}
        self.native = native_unet(self.unet, text, self.added, checkpoint, labels=self.labels)
        self.channels = self.unet.config.in_channels
        self.noisy = torch.randn(2, self.channels, *self.size).to(dtype)
        self.timesteps = torch.tensor([3, 981])
        self.condition = torch.randn(2, 5, self.native.condition_width).to(dtype)
        self.weight = torch.randn(2, self.channels, *self.size).to(dtype)

    def ours(self, condition: Tensor) -> Tensor:
        return self.native.predict(self.noisy, self.timesteps, condition)

    def theirs(self, condition: Tensor) -> Tensor:
        labels, hidden = None, condition
        if self.unet.config.class_embed_type is not None:
            labels, hidden = condition.mean(dim=1), self.text.expand(2, -1, -1)
        if self.labels and labels is not None:
            scale, shift = (self.labels[name].to(labels) for name in ("class_scale", "class_shift"))
            labels = torch.cat((labels * scale + shift[:, :10], shift[:, 10:].expand(2, -1)), dim=1)
        added = None if self.added is None else self.added.like(self.noisy)
        output = self.unet(self.noisy, self.timesteps, hidden, class_labels=labels, added_cond_kwargs=added)
        return output.sample[:, : self.channels]

    def both(self, predict: Any) -> tuple[Tensor, Tensor]:
        """The prediction, and the gradient at the condition of a fixed functional of it."""
        condition = self.condition.clone().requires_grad_()
        prediction = predict(condition)
        (prediction * self.weight).sum().backward()
        assert condition.grad is not None
        return prediction.detach(), condition.grad


def stirred(module: Any, seed: int = 1) -> Any:
    """Noise in every weight: norms of one and biases of zero would hide what a network leaves out."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def stirred_slightly(module: Any) -> Any:
    """Norms away from one and zero; the other weights are random already, and sized for the depth."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, (nn.GroupNorm, nn.LayerNorm)):
                part.weight.add_(0.1 * torch.randn_like(part.weight))
                part.bias.add_(0.1 * torch.randn_like(part.bias))
    return module
