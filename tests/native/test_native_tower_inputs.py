"""What native towers refuse: modules that compute more than their weights, and inputs that do not fit."""

from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import torch
import transformers
from torch import nn

from builders.changes import Adapted, Twice, error
from builders.clips import clip_variants, pixels
from builders.native_towers import as_the_original, build
from diva_rs import _native
from diva_rs.clip import adapt
from diva_rs.errors import ConfigError, ShapeError
from diva_rs.native import NotNative, native_tower, why_not

pytestmark = pytest.mark.hostile

VARIANTS = clip_variants()


@pytest.fixture(autouse=True)
def _stand_in_as_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    as_the_original(monkeypatch)


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


def _set(path: str, make: Callable[[], Any]) -> Callable[[Any], Any]:
    """A change that sets the attribute at a dotted path below the blocks."""
    owner, _, name = path.rpartition(".")
    return lambda v: setattr(v.transformer.resblocks.get_submodule(owner), name, make())


def _hook(register: str) -> Callable[[Any], Any]:
    return lambda v: getattr(v.transformer.resblocks[0].mlp, register)(lambda *args: None)


def _subclass(v: Any) -> None:
    class Mine(type(v.transformer.resblocks[0])):  # type: ignore[misc]
        pass

    v.transformer.resblocks[0].__class__ = Mine


def _parametrize(v: Any) -> None:
    nn.utils.parametrize.register_parametrization(v.transformer.resblocks[0].mlp.c_fc, "weight", Twice())


def _patch_dropout(v: Any) -> None:
    v.patch_dropout = open_clip.transformer.PatchDropout(0.5)


def _nothing() -> Callable[..., Any]:
    return lambda x, **kwargs: x


_dropout = _set("1.attn.dropout", lambda: 0.1)
_QuickGELU, _LayerScale = open_clip.transformer.QuickGELU, open_clip.transformer.LayerScale
REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "forward hook": (_hook("register_forward_hook"), "mlp has a forward hook"),
    "forward pre-hook": (_hook("register_forward_pre_hook"), "mlp has a forward pre-hook"),
    "backward hook": (_hook("register_full_backward_hook"), "mlp has a backward hook"),
    "backward pre-hook": (_hook("register_full_backward_pre_hook"), "mlp has a backward pre-hook"),
    "adapter": (_set("1.mlp.c_fc", lambda: Adapted(32, 128)), r"resblocks.1.mlp.c_fc is a .*Adapted"),
    "subclass": (_subclass, r"resblocks.0 is a .*Mine"),
    "forward of an instance": (_set("0.forward", _nothing), r"resblocks.0.forward was replaced on the"),
    "method of an instance": (_set("0.attention", _nothing), r"resblocks.0.attention was replaced on the"),
    "parametrization": (_parametrize, "c_fc has a parametrization"),
    "weight norm": (lambda v: nn.utils.weight_norm(v.transformer.resblocks[0].mlp.c_fc), "forward pre-hook"),
    "layer more": (_set("0.mlp.again", nn.Identity), "layers of an MLP are"),
    "dropout": (_dropout, "resblocks.1.attn .* is random in train mode"),
    "patch dropout": (_patch_dropout, "patch_dropout .* is random in train mode"),
    "two activations": (_set("1.mlp.gelu", _QuickGELU), "activation differs from layer to layer"),
    "two eps": (_set("1.ln_1.eps", lambda: 1e-3), "eps of LayerNorm differs"),
    "norm without weights": (
        _set("1.ln_1", lambda: nn.LayerNorm(32, elementwise_affine=False)),
        "no weight or no bias",
    ),
    "activation out of place": (_set("1.ls_1", nn.GELU), r"resblocks.1.ls_1 is a .*GELU"),
    "layer between blocks": (
        lambda v: v.transformer.resblocks.insert(1, nn.Linear(32, 32)),
        "not laid out as expected",
    ),
    "scale in one block": (_set("1.ls_2", lambda: _LayerScale(32, 0.1)), "there is layer scale differs"),
    "weights that nobody asked about": (
        _set("1.extra", lambda: nn.Linear(2, 2)),
        "extra.bias` is unexpected",
    ),
    "sequence-first attention": (_set("0.attn.batch_first", lambda: False), "its own batch axis"),
    "attention to zero": (_set("0.attn.add_zero_attn", lambda: True), "other weights than"),
    "half precision": (lambda v: v.half(), "is torch.float16"),
    "two precisions": (lambda v: v.ln_post.double(), "is torch.float64, .* is torch.float32"),
    "dilated patches": (lambda v: setattr(v.conv1, "dilation", (2, 2)), "not one product per patch"),
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
    assert error(native_tower(tower).tokens(images), tower.tokens(images)) <= 1e-10


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
    assert error(native_tower(tower).tokens(images), tower.tokens(images)) <= 1e-5
    model.double()
    with pytest.raises(NotNative, match=r"LayerNormFp32 over torch.float64"):
        native_tower(adapt(model))
