"""UNets that the native network does not compute exactly are refused with the reason, never approximated."""

import copy
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from torch import nn

from builders.changes import Adapted, setting
from builders.diffusion import TEXT_WIDTH, tiny_unet
from builders.unets import native_unet
from diva_rs.native.inspect import NotNative

pytestmark = pytest.mark.hostile


class _Sub(diffusers.UNet2DConditionModel):
    pass


_LAYER = "down_blocks.0.attentions.0.transformer_blocks.0"
_WEIGHT_NORM = nn.utils.parametrizations.weight_norm

# What is done to a module, and the reason that is given.
CHANGES: dict[str, tuple[Any, str]] = {
    "subclass": (lambda unet: setattr(unet, "__class__", _Sub), "it is a .*_Sub"),
    "sliced attention": (lambda unet: unet.set_attn_processor(SlicedAttnProcessor(1)), "SlicedAttnProcessor"),
    "fused projections": (lambda unet: unet.fuse_qkv_projections(), "FusedAttnProcessor2_0|fused"),
    "freeu": (lambda unet: unet.enable_freeu(0.9, 0.2, 1.2, 1.4), "up_blocks.0 has FreeU enabled"),
    "hook": (lambda unet: unet.mid_block.register_forward_hook(print), "mid_block has a forward hook"),
    "pre-hook": (
        lambda unet: unet.conv_in.register_forward_pre_hook(print),
        "has a forward pre-hook",
    ),
    "backward hook": (lambda unet: unet.conv_in.register_full_backward_hook(print), "has a backward hook"),
    "parametrization": (lambda unet: _WEIGHT_NORM(unet.conv_in), "conv_in"),
    "replaced forward": (setting("mid_block.forward", lambda *_: 0), "mid_block.forward was replaced"),
    "replaced layer": (setting(f"{_LAYER}.norm1", nn.Identity()), "norm1 is a .*Identity"),
    "replaced activation": (setting("mid_block.resnets.0.nonlinearity", nn.Dropout(0.0)), "is a .*Dropout"),
    "replaced feed-forward": (setting(f"{_LAYER}.ff.net", nn.ModuleList([nn.SiLU()])), "not a GEGLU"),
    "lora": (setting(f"{_LAYER}.attn1.to_q", Adapted(16, 16, bias=False)), "to_q is a .*Adapted"),
    "circular padding": (setting("conv_in.padding_mode", "circular"), "conv_in is Conv2d.*circular"),
    "dilation": (setting("conv_in.dilation", (2, 2)), "conv_in is Conv2d.*dilation"),
    "other eps": (setting("mid_block.resnets.0.norm1.eps", 1e-2), "eps of the ResNets' norms differs"),
    "other scores": (setting(f"{_LAYER}.attn1.scale", 1.0), "scales its scores by 1.0"),
    "scaled output": (setting(f"{_LAYER}.attn2.rescale_output_factor", 2.0), "attn2 scales its output"),
    "scaled resnet": (
        setting("up_blocks.0.resnets.0.output_scale_factor", 2.0),
        "a ResNet scales its output",
    ),
    "time scale": (setting("time_proj.scale", 2), "timesteps are scaled"),
    "half": (lambda unet: unet.half(), "is torch.float16"),
    "mixed dtypes": (lambda unet: unet.conv_in.double(), "is torch.float32, .* is torch.float64"),
    "extra parameter": (setting("x", nn.Parameter(torch.zeros(1))), "`x` is unexpected"),
    "mixed devices": (lambda unet: unet.conv_out.to("meta"), "is meta"),
}
# What a configuration asks for, and the reason that is given.
CONFIGURATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "only cross-attention": ({"only_cross_attention": True}, "only cross-attention"),
    "dual cross-attention": ({"dual_cross_attention": True}, "DualTransformer2DModel"),
    "other block": ({"down_block_types": ("CrossAttnDownBlock2D", "AttnDownBlock2D")}, "AttnDownBlock2D"),
    "other mid block": ({"mid_block_type": "UNetMidBlock2D"}, "mid_block is a .*UNetMidBlock2D"),
    "simple cross-attention": ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "SimpleCrossAttn"),
    "text projection": ({"encoder_hid_dim": 40}, "it has a encoder_hid_proj"),
    "class table": ({"num_class_embeds": 5}, "class_embedding is a .*Embedding"),
    "class timestep": ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
    "class identity": ({"class_embed_type": "identity"}, "Identity"),
    "class concatenated": (
        {
            "class_embed_type": "projection",
            "projection_class_embeddings_input_dim": 8,
            "class_embeddings_concat": True,
        },
        "concatenated",
    ),
    "added text": ({"addition_embed_type": "text", "addition_embed_type_num_heads": 4}, "TextTimeEmbedding"),
    "time activation": ({"time_embedding_act_fn": "silu"}, "it has a time_embed_act"),
    "fourier": ({"time_embedding_type": "fourier"}, "GaussianFourierProjection"),
    "post activation": ({"timestep_post_act": "silu"}, "post_act"),
    "time condition": ({"time_cond_proj_dim": 8}, "cond_proj"),
    "conv_in 1": ({"conv_in_kernel": 1}, "conv_in"),
    "conv_out 5": ({"conv_out_kernel": 5}, "conv_out is Conv2d"),
    "gelu": ({"act_fn": "gelu"}, "GELU"),
    "gated": ({"attention_type": "gated"}, "GatedSelfAttentionDense|GLIGEN"),
    "downsample padding": ({"downsample_padding": 2}, "must be 0 or 1"),
    "inpainting": ({"in_channels": 9}, "9 channels in and 4 out"),
    "two widths": ({"cross_attention_dim": (24, 32)}, "cross_attention_dim differs"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_module_is_refused_with_the_reason(name: str) -> None:
    change, reason = CHANGES[name]
    unet = tiny_unet().eval()
    assert native_unet(unet)
    change(unet)
    with pytest.raises(NotNative, match=reason):
        native_unet(unet)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_an_unknown_configuration_is_refused_with_the_reason(name: str) -> None:
    config, reason = CONFIGURATIONS[name]
    if name == "two widths":
        config = {**config, "down_block_types": ("CrossAttnDownBlock2D",) * 2}
    with pytest.raises(NotNative, match=reason):
        native_unet(tiny_unet(**config).eval(), text=torch.zeros(1, 5, TEXT_WIDTH))


def test_dropout_in_train_mode_is_a_reason() -> None:
    unet = tiny_unet(dropout=0.1)
    assert native_unet(unet.eval())
    with pytest.raises(NotNative, match="random in train mode"):
        native_unet(unet.train())


def test_an_attention_that_upcasts_is_a_reason() -> None:
    # diffusers' default processor ignores the flag, its classic one obeys it.
    unet = tiny_unet(upcast_attention=True).double().eval()
    assert native_unet(unet)
    unet.set_attn_processor(AttnProcessor())
    with pytest.raises(NotNative, match="computes its softmax in float32"):
        native_unet(unet)


def test_missing_text_and_missing_added_condition_are_reasons_too() -> None:
    with pytest.raises(NotNative, match="needs encoder_hidden_states"):
        native_unet(tiny_unet("unclip").eval())
    with pytest.raises(NotNative, match=r"add_embedding.* is unexpected"):
        native_unet(tiny_unet("sdxl").eval())


def test_what_changes_nothing_is_no_reason() -> None:
    unet = tiny_unet()
    unet.enable_gradient_checkpointing()
    unet.enable_freeu(0.9, 0.2, 1.2, 1.4)
    unet.disable_freeu()
    unet.set_attn_processor(AttnProcessor2_0())
    assert native_unet(unet.train()).condition_width == TEXT_WIDTH
    assert (
        native_unet(copy.deepcopy(unet).to(memory_format=torch.channels_last)).condition_width == TEXT_WIDTH
    )
