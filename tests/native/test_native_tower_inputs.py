"""What native towers refuse: modules that compute more than their weights, and inputs that do not fit."""

from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import torch
import transformers
from torch import Tensor, nn

from builders.clips import clip_variants, pixels
from builders.native_towers import ONE_PER_FAMILY, as_the_original, build, relative
from diva_rs import _native
from diva_rs.clip import adapt
from diva_rs.errors import ConfigError, ShapeError, WeightsError
from diva_rs.native import NotNative, native_tower, why_not
from diva_rs.native.vision import describe

pytestmark = pytest.mark.hostile

VARIANTS = clip_variants()


@pytest.fixture(autouse=True)
def _stand_in_as_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    as_the_original(monkeypatch)


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_weights_are_strict_both_ways(name: str) -> None:
    tower = adapt(VARIANTS[name]())
    weights = describe(tower)[1]
    for key, weight in weights.items():
        rest = {other: value for other, value in weights.items() if other != key}
        with pytest.raises(WeightsError, match=f"`{key}` is missing") as missing:
            build(tower, rest)
        assert str(list(weight.shape)) in str(missing.value)
        wrong = torch.zeros(*weight.shape, 2)
        with pytest.raises(WeightsError, match=f"`{key}` has shape") as misshapen:
            build(tower, {**rest, key: wrong})
        assert str(list(weight.shape)) in str(misshapen.value) and str(list(wrong.shape)) in str(
            misshapen.value
        )
    with pytest.raises(WeightsError, match=r"`visual.extra` is unexpected"):
        build(tower, {**weights, "visual.extra": torch.zeros(1)})
    with pytest.raises(WeightsError, match=f"`{key}` is Double on Cpu, but"):
        build(tower, {**weights, key: weight.double()})
    with pytest.raises(WeightsError, match=f"`{key}` is Half"):
        build(tower, {**weights, key: weight.half()})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layout": "flax"}, "config.layout: unknown variant `flax`"),
        ({"pool": "max"}, "expected one of `class`, `avg`, `map`"),
        ({"positions": "rotary"}, "config.positions: unknown variant"),
        ({"resize": "linear"}, "config.resize: unknown variant"),
        ({"activation": "mish"}, "config.activation: unknown variant"),
        ({"compute": "fp8"}, "config.compute: unknown variant"),
        ({"head": [("conv", "head")]}, r"config\.head\[0\].*: unknown variant"),
        ({"heads": 5}, "not a multiple of heads"),
        ({"layers": 0}, "layers 0: must be at least 1"),
        ({"patch": (64, 64)}, "no patch"),
        ({"eps": -1.0}, "out of range"),
        ({"registers": 1}, "has no registers"),
        ({"pool": "map"}, "has no pool"),
        ({"class_token": False}, "needs class_token"),
        ({"width": "wide"}, 'config.width: invalid type: string "wide", expected i64'),
        ({"windows": 3}, "unknown field `windows`"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(adapt(VARIANTS["open_clip-gelu"]()), **fields)


def test_what_does_not_fit_the_weights_is_refused() -> None:
    tower = adapt(VARIANTS["open_clip-gelu"](torch.float64))
    with pytest.raises(ConfigError, match="needs weights in less than float64"):
        build(tower, compute="bf16")
    with pytest.raises(ConfigError, match="missing field `width`"):
        _native.Network(
            "vision_transformer",
            {"compute": None, "head": [], "layout": "timm", "root": "", "image": (1, 1), "patch": (1, 1)},
            {},
        )
    with pytest.raises(ConfigError, match="no weights"):
        build(tower, {})


def test_images_that_do_not_fit_are_refused() -> None:
    native = native_tower(adapt(VARIANTS["open_clip-gelu"]()))
    for shape in [(2, 3, 32, 40), (2, 1, 32, 32), (3, 32, 32), (0, 3, 32, 32)]:
        with pytest.raises(ShapeError, match="expected"):
            native.tokens(torch.zeros(shape))
    with pytest.raises(ShapeError, match="floating-point"):
        native.tokens(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))


def test_a_model_that_is_cast_later_is_noticed() -> None:
    model = VARIANTS["open_clip-gelu"]()
    native = native_tower(adapt(model))
    model.double()
    with pytest.raises(ConfigError, match="cast from Float to Double after"):
        native.tokens(pixels(model))


class Adapted(nn.Linear):
    """As a low-rank adapter: computes more than its weight says."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def _hook(register: str) -> Callable[[Any], Any]:
    return lambda v: getattr(v.transformer.resblocks[0].mlp, register)(lambda *args: None)


def _replace(v: Any) -> None:
    v.transformer.resblocks[1].mlp.c_fc = Adapted(32, 128)


def _subclass(v: Any) -> None:
    class Mine(type(v.transformer.resblocks[0])):  # type: ignore[misc]
        pass

    v.transformer.resblocks[0].__class__ = Mine


def _instance(v: Any) -> None:
    v.transformer.resblocks[0].forward = lambda x, **kwargs: x


def _attention(v: Any) -> None:
    v.transformer.resblocks[0].attention = lambda x, **kwargs: x


def _parametrize(v: Any) -> None:
    nn.utils.parametrize.register_parametrization(v.transformer.resblocks[0].mlp.c_fc, "weight", Twice())


def _weight_norm(v: Any) -> None:
    nn.utils.weight_norm(v.transformer.resblocks[0].mlp.c_fc)


def _insert(v: Any) -> None:
    v.transformer.resblocks[0].mlp.add_module("again", nn.Identity())


def _dropout(v: Any) -> None:
    v.transformer.resblocks[1].attn.dropout = 0.1


def _patch_dropout(v: Any) -> None:
    v.patch_dropout = open_clip.transformer.PatchDropout(0.5)


def _activation(v: Any) -> None:
    v.transformer.resblocks[1].mlp.gelu = open_clip.transformer.QuickGELU()


def _eps(v: Any) -> None:
    v.transformer.resblocks[1].ln_1.eps = 1e-3


def _no_affine(v: Any) -> None:
    v.transformer.resblocks[1].ln_1 = nn.LayerNorm(32, elementwise_affine=False)


def _out_of_place(v: Any) -> None:
    v.transformer.resblocks[1].ls_1 = nn.GELU()
    v.transformer.resblocks[1].ls_2 = nn.GELU()


def _wrong_place(v: Any) -> None:
    v.transformer.resblocks.insert(1, nn.Linear(32, 32))


def _half_scale(v: Any) -> None:
    v.transformer.resblocks[1].ls_2 = open_clip.transformer.LayerScale(32, 0.1)


def _extra(v: Any) -> None:
    v.transformer.extra = nn.Linear(2, 2)


def _batch(v: Any) -> None:
    v.transformer.resblocks[0].attn.batch_first = False


def _zero_attention(v: Any) -> None:
    v.transformer.resblocks[0].attn.add_zero_attn = True


def _half(v: Any) -> None:
    v.half()


def _mixed(v: Any) -> None:
    v.ln_post.double()


def _dilated(v: Any) -> None:
    v.conv1.dilation = (2, 2)


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "forward hook": (_hook("register_forward_hook"), "mlp has a forward hook"),
    "forward pre-hook": (_hook("register_forward_pre_hook"), "mlp has a forward pre-hook"),
    "backward hook": (_hook("register_full_backward_hook"), "mlp has a backward hook"),
    "backward pre-hook": (_hook("register_full_backward_pre_hook"), "mlp has a backward pre-hook"),
    "adapter": (_replace, r"resblocks.1.mlp.c_fc is a .*Adapted"),
    "subclass": (_subclass, r"resblocks.0 is a .*Mine"),
    "forward of an instance": (_instance, r"resblocks.0.forward was replaced on the instance"),
    "method of an instance": (_attention, r"resblocks.0.attention was replaced on the instance"),
    "parametrization": (_parametrize, "c_fc has a parametrization"),
    "weight norm": (_weight_norm, "c_fc has a forward pre-hook"),
    "layer more": (_insert, "layers of an MLP are"),
    "dropout": (_dropout, "resblocks.1.attn .* is random in train mode"),
    "patch dropout": (_patch_dropout, "patch_dropout .* is random in train mode"),
    "two activations": (_activation, "activation differs from layer to layer"),
    "two eps": (_eps, "eps of LayerNorm differs"),
    "norm without weights": (_no_affine, "no weight or no bias"),
    "activation out of place": (_out_of_place, r"resblocks.1.ls_1 is a .*GELU"),
    "layer between blocks": (_wrong_place, "not laid out as expected"),
    "scale in one block": (_half_scale, "there is layer scale differs"),
    "weights that nobody asked about": (_extra, "transformer.extra.bias` is unexpected"),
    "sequence-first attention": (_batch, "its own batch axis"),
    "attention to zero": (_zero_attention, "other weights than"),
    "half precision": (_half, "is torch.float16"),
    "two precisions": (_mixed, "is torch.float64, .* is torch.float32"),
    "dilated patches": (_dilated, "not one product per patch"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_changes_the_result_without_being_a_weight_is_refused(name: str) -> None:
    change, reason = REFUSED[name]
    model = VARIANTS["open_clip-gelu"]()
    tower = adapt(model)
    assert why_not(tower) is None
    change(model.visual)
    with pytest.raises(NotNative, match=reason):
        native_tower(tower)


def test_dropout_at_rest_is_no_reason_to_refuse() -> None:
    model = VARIANTS["open_clip-gelu"](torch.float64).eval()
    _dropout(model.visual)
    _patch_dropout(model.visual)
    model.visual.patch_dropout.eval()
    tower, images = adapt(model), pixels(model, dtype=torch.float64)
    assert relative(native_tower(tower).tokens(images), tower.tokens(images)) <= 1e-10


def test_hooks_on_all_modules_and_replaced_classes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tower = adapt(VARIANTS["open_clip-gelu"]())
    handle = nn.modules.module.register_module_forward_hook(lambda *args: None)
    try:
        with pytest.raises(NotNative, match="for all modules"):
            native_tower(tower)
    finally:
        handle.remove()
    monkeypatch.setattr(open_clip.transformer.ResidualAttentionBlock, "forward", lambda self, x, **kwargs: x)
    with pytest.raises(NotNative, match=r"ResidualAttentionBlock.forward was replaced"):
        native_tower(tower)


@pytest.mark.parametrize("name", ["transformers-clip", "transformers-siglip"])
def test_other_attention_functions_of_transformers_are_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = VARIANTS[name]()
    model.set_attn_implementation("eager")
    with pytest.raises(NotNative, match="attention implementation is 'eager'"):
        native_tower(adapt(model))
    model.set_attn_implementation("sdpa")
    assert why_not(adapt(model)) is None
    monkeypatch.setitem(
        transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS, "sdpa", lambda *args, **kwargs: None
    )
    with pytest.raises(NotNative, match="'sdpa' was replaced"):
        native_tower(adapt(model))


def test_norms_in_float32_are_native_up_to_float32() -> None:
    model = VARIANTS["open_clip-gelu"]()
    for module in model.visual.modules():
        if type(module) is open_clip.transformer.LayerNorm:
            module.__class__ = open_clip.transformer.LayerNormFp32
    tower, images = adapt(model), pixels(model)
    assert relative(native_tower(tower).tokens(images), tower.tokens(images)) <= 1e-5
    model.double()
    with pytest.raises(NotNative, match=r"LayerNormFp32 over torch.float64"):
        native_tower(adapt(model))
