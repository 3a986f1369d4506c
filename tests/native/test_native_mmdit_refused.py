"""Models, configurations and inputs that a native Flux or SD3 transformer refuses, with the reason."""

from collections.abc import Callable

import diffusers
import pytest
from torch import Tensor, nn

from builders import dits
from builders.changes import setting
from builders.mmdits import FLUX, SD3, build, inputs, native_mmdit
from diva_rs import _native
from diva_rs.diffusion import NativePlan
from diva_rs.errors import ConfigError, ShapeError, WeightsError
from diva_rs.native import NotNative
from diva_rs.native.dit import DIT
from diva_rs.native.mmdit import flux_config, sd3_config

pytestmark = pytest.mark.hostile

OPTIONS = {
    "more-channels-in": (FLUX | {"in_channels": 24, "out_channels": 16}, "24 channels in and 16 out"),
    "unpacked": (FLUX | {"in_channels": 6}, "its 6 channels are not those of packed 2x2 patches"),
    "larger-patches": (FLUX | {"patch_size": 2}, "not those of packed 2x2 patches"),
    "other-channels-out": (SD3 | {"out_channels": 8}, "4 channels in and 8 out"),
    "computed-positions": (SD3 | {"pos_embed_max_size": None}, "no stored positions to crop"),
    "plain-norm": (SD3 | {"qk_norm": "fp32_layer_norm"}, "norm_q is a .*FP32LayerNorm"),
    "narrow-text": (SD3 | {"caption_projection_dim": 8}, "its text is 8 wide, its image 16"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_other_options_are_refused_with_the_reason(name: str) -> None:
    options, reason = OPTIONS[name]
    flux = "axes_dims_rope" in options
    model = (diffusers.FluxTransformer2DModel if flux else diffusers.SD3Transformer2DModel)(**options)
    with pytest.raises(NotNative, match=reason):
        native_mmdit(model.eval())


def _sliced(model: nn.Module) -> None:
    del model.single_transformer_blocks[1]


def _fuse(model: nn.Module) -> None:
    model.transformer_blocks[0].attn.fuse_projections()


def _dropping(model: nn.Module) -> None:
    model.train().transformer_blocks[0].ff.net[1].p = 0.5


_BLOCK = "transformer_blocks.0"
REFUSED = {
    "train-mode": (_dropping, r"ff.net.1 \(Dropout\) is random in train mode"),
    "hook": (
        lambda model: model.proj_out.register_forward_hook(print) and None,
        "proj_out has a forward hook",
    ),
    "layer": (setting(f"{_BLOCK}.ff.net.1", nn.SiLU()), r"ff.net.1 is a .*SiLU, not a .*Dropout"),
    "fewer-blocks": (_sliced, "single_transformer_blocks.1.* is missing"),
    "more-layers": (setting(f"{_BLOCK}.more", nn.SiLU()), "transformer_blocks.0.more is too many"),
    "eps": (setting(f"{_BLOCK}.norm2.eps", 1e-3), "transformer_blocks.0.norm2.eps is not 1e-06"),
    "heads": (setting(f"{_BLOCK}.attn.heads", 4), "transformer_blocks.0.attn.heads is not 2"),
    "theta": (setting("pos_embed.theta", 500), "pos_embed.theta is not 10000"),
    "gelu": (setting(f"{_BLOCK}.ff.net.0.approximate", "none"), "ff.net.0.approximate is not 'tanh'"),
    "fused": (_fuse, "transformer_blocks.0.attn.to_.*qkv is too many"),
    "processor": (
        lambda model: model.set_attn_processor(
            diffusers.models.transformers.transformer_flux.FluxIPAdapterAttnProcessor(16, 16)
        ),
        "FluxIPAdapterAttnProcessor",
    ),
    "backend": (
        lambda model: setattr(model.transformer_blocks[0].attn.processor, "_attention_backend", "flash"),
        "transformer_blocks.0.attn.processor is not",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_changed_models_are_refused_with_the_reason(name: str) -> None:
    change, reason = REFUSED[name]
    model = build("flux")
    native_mmdit(model)
    change(model)
    with pytest.raises(NotNative, match=reason):
        native_mmdit(model)


def parts(name: str, **fields: object) -> tuple[dict, dict[str, Tensor]]:
    model = build(name)
    config = {"flux": flux_config, "sd3": sd3_config}[name](model)
    return {**config, "checkpoint": False, **fields}, dict(model.named_parameters()) | dict(
        model.named_buffers()
    )


_AXES = {"num_single_layers": 2, "theta": 1e4}


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("flux", {"heads": 0}, "heads is 0"),
        ("flux", {"patch_size": -1}, "patch_size is -1"),
        ("flux", {"form": {"flux": {**_AXES, "axes": (2, 2, 2)}}}, "add up to the 8 channels of a head"),
        ("flux", {"form": {"flux": {**_AXES, "axes": (3, 3, 2)}}}, "must be even"),
        (
            "flux",
            {"form": {"flux": {**_AXES, "axes": (2, 2, 4), "theta": 0}}},
            "theta 0: must be finite and positive",
        ),
        ("flux", {"form": {"flux": {**_AXES}}}, "config.form.flux: missing field `axes`"),
        ("flux", {"form": {"pixart": {}}}, "unknown variant `pixart`, expected `flux` or `sd3`"),
        ("flux", {"norm_eps": -1.0}, "eps -1: must be finite and not negative"),
        ("flux", {"qk_norm": ("l2", 1e-6)}, "unknown variant `l2`"),
        ("flux", {"guidance": float("inf")}, "config.guidance is inf: it must be finite"),
        ("flux", {"train": "fp8"}, "config.train: unknown variant `fp8`"),
        ("flux", {"depth": 1}, "unknown field `depth`"),
        ("sd3", {"num_layers": 0}, "the number of blocks is 0"),
        ("sd3", {"form": {"sd3": {"grid": 0, "dual_layers": ()}}}, "grid is 0"),
    ],
)
def test_impossible_configurations(name: str, fields: dict, message: str) -> None:
    config, weights = parts(name, **fields)
    with pytest.raises(ConfigError, match=message):
        _native.Network("mmdit", config, weights)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "flux",
            lambda x, t, c: (x[:, :3], t, c),
            r"`noisy` has shape \[2, 3, 6, 10\], expected \(B, 4, H, W\)",
        ),
        ("flux", lambda x, t, c: (x[..., :5], t, c), "multiples of the patch size 2, nothing"),
        ("sd3", lambda x, t, c: (x.repeat(1, 1, 5, 1), t, c), "multiples of the patch size 2 up to 24"),
        ("sd3", lambda x, t, c: (x[:0], t[:0], c[:0]), "`noisy`.*nothing of it empty"),
        ("flux", lambda x, t, c: (x.long(), t, c), "`noisy` is Int64, expected a floating-point dtype"),
        ("flux", lambda x, t, c: (x, t[:1], c), r"`timesteps` has shape \[1\], expected numbers \[2\]"),
        ("sd3", lambda x, t, c: (x, t > 4, c), "`timesteps`"),
        (
            "flux",
            lambda x, t, c: (x, t, c[:1]),
            r"`condition.tokens` has shape \[1, 5, 6\], expected \[2, S, 6\]",
        ),
        (
            "flux",
            lambda x, t, c: (x, t, c[..., :9]),
            r"`condition.pooled` has shape \[2, 3\], expected \[2, 10\]",
        ),
        ("sd3", lambda x, t, c: (x, t, c[..., :6]), "C > 6, the width of the tokens' slot"),
    ],
)
def test_impossible_inputs(name: str, change: Callable, message: str) -> None:
    model = build(name)
    with pytest.raises(ShapeError, match=message):
        native_mmdit(model).predict(*change(*inputs(model)))


def test_guidance_belongs_to_a_model_with_its_embedding() -> None:
    config, weights = parts("flux", guidance=4.0)
    with pytest.raises(WeightsError, match=r"guidance_embedder.* is missing"):
        _native.Network("mmdit", config, weights)


def test_only_weights_of_networks_that_can_train_do() -> None:
    with pytest.raises(NotNative, match="it trains"):
        DIT.build(dits.build("affine"), NativePlan("dit", {"label": "replace"}), train="fp64")
