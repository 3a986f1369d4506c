"""DiTs that the native network does not compute exactly are refused with the reason, never approximated."""

import diffusers
import pytest
import torch
from torch import nn

from builders.changes import Adapted, setting
from builders.diffusion import tiny_dit, tiny_unet
from builders.dits import build, native_dit
from diva_rs.native import NotNative

pytestmark = pytest.mark.hostile

FALLBACK = {
    "geglu": ({"activation_fn": "geglu"}, r"transformer_blocks.0.ff.net.0 is a .*GEGLU"),
    "sigmoid-gelu": ({"activation_fn": "geglu-approximate"}, r"net.0 is a .*ApproximateGELU"),
    "swiglu": ({"activation_fn": "swiglu"}, r"net.0 is a .*SwiGLU"),
    "silu": ({"activation_fn": "linear-silu"}, r"net.0 is a .*LinearActivation"),
    "odd-channels": ({"out_channels": 5}, "4 channels in and 5 out"),
}


@pytest.mark.parametrize("name", FALLBACK)
def test_other_options_are_refused_with_the_reason(name: str) -> None:
    changes, reason = FALLBACK[name]
    with pytest.raises(NotNative, match=reason):
        native_dit(tiny_dit(**changes).eval())


def test_a_label_to_join_needs_no_class() -> None:
    dit = build("learned-variance")
    for block in dit.transformer_blocks:
        block.norm1.emb.class_embedder.embedding_table = nn.Embedding(10, 16, dtype=torch.float64)
    native_dit(dit, "replace")
    with pytest.raises(NotNative, match="the table of 10 rows has none after 10 classes"):
        native_dit(dit, "join")


def _replace_linear(dit: nn.Module) -> None:
    dit.transformer_blocks[1].attn1.to_q = Adapted(16, 16, dtype=torch.float64)


def _processor(name: str):
    def change(dit: nn.Module) -> None:
        dit.transformer_blocks[0].attn1.set_processor(getattr(diffusers.models.attention_processor, name)())

    return change


def _upcast(dit: nn.Module) -> None:
    _processor("AttnProcessor")(dit)
    dit.transformer_blocks[0].attn1.upcast_softmax = True


def _fuse(dit: nn.Module) -> None:
    dit.transformer_blocks[0].attn1.fuse_projections()


def _patched_forward(dit: nn.Module) -> None:
    block = dit.transformer_blocks[2]
    block.forward = lambda *args, **kwargs: type(block).forward(block, *args, **kwargs)


_FIRST = "transformer_blocks.0"
REFUSED = {
    "unet": (lambda dit: tiny_unet(), "it is a diffusers.models.unets"),
    "subclass": (
        lambda dit: type("Mine", (type(dit),), {})(2, 8, num_layers=1, norm_num_groups=4),
        "it is a .*Mine",
    ),
    "train-mode": (lambda dit: dit.train(), r"LabelEmbedding\) is random in train mode"),
    "dropout": (lambda dit: tiny_dit(dropout=0.1).train(), "is random in train mode"),
    "layer-subclass": (_replace_linear, "transformer_blocks.1.attn1.to_q is a .*Adapted"),
    "hook": (lambda dit: dit.norm_out.register_forward_hook(print) and None, "norm_out has a forward hook"),
    "pre-hook": (
        lambda dit: dit.register_forward_pre_hook(print) and None,
        "the module has a forward pre-hook",
    ),
    "parametrized": (
        lambda dit: nn.utils.parametrizations.weight_norm(dit.proj_out_1) and None,
        "proj_out_1 has a parametrization",
    ),
    "instance-forward": (_patched_forward, r"transformer_blocks.2.forward was replaced"),
    "processor": (_processor("AttnAddedKVProcessor2_0"), "processor is a .*AttnAddedKVProcessor2_0"),
    "float32-softmax": (_upcast, "computes its softmax in float32"),
    "fused": (_fuse, "has fused projections"),
    "chunked": (lambda dit: dit.transformer_blocks[0].set_chunk_feed_forward(1, 1), "in chunks"),
    "scaled-scores": (setting(f"{_FIRST}.attn1.scale", 1.0), "scales its scores by 1.0"),
    "scaled-output": (setting(f"{_FIRST}.attn1.rescale_output_factor", 2.0), "scales its output"),
    "residual": (setting(f"{_FIRST}.attn1.residual_connection", True), "adds its input to its output"),
    "scaled-time": (setting(f"{_FIRST}.norm1.emb.time_proj.scale", 1000), "its timesteps are scaled"),
    "other-frequencies": (
        setting(f"{_FIRST}.norm1.emb.time_proj.downscale_freq_shift", 0),
        "differs from layer",
    ),
    "scaled-positions": (setting("pos_embed.interpolation_scale", 2), "its positions are scaled by 2"),
    "cropped-positions": (setting("pos_embed.pos_embed_max_size", 8), "pos_embed is of an unknown form"),
    "no-positions": (setting("pos_embed.pos_embed", None), "it has no positions"),
    "other-eps": (setting(f"{_FIRST}.norm3.eps", 1e-2), "eps of norm3 differs from layer to layer"),
    "weighted-norm": (setting("norm_out", nn.LayerNorm(16, dtype=torch.float64)), "norm_out has weights"),
    "no-norm": (setting("norm_out", nn.SiLU()), "norm_out is a torch.nn.modules.activation.SiLU"),
    "extra-weight": (
        setting("proj_out_3", nn.Linear(2, 2, dtype=torch.float64)),
        "`proj_out_3.bias` is unexpected",
    ),
    "mixed": (lambda dit: dit.proj_out_1.float() and None, "proj_out_1.weight is torch.float32"),
    "half": (lambda dit: dit.half(), "is torch.float16"),
    "wide-patches": (
        setting("pos_embed.proj.dilation", (2, 2)),
        "pos_embed.proj is Conv2d.* of an unknown form",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_change_of_the_result_is_refused_with_the_reason(name: str) -> None:
    change, reason = REFUSED[name]
    dit = build("learned-variance")
    with pytest.raises(NotNative, match=reason):
        native_dit(change(dit) or dit)
