"""Everything that the package declares native is in a model that the parity tests run over.

The declared noise schedules are what `test_schedule.py` makes its tests of; here they are held against what
the core takes.
"""

import importlib
import re
from collections.abc import Callable
from functools import partial

import open_clip
import pytest
import timm.layers
import torch
from native import test_native_towers, test_native_vae
from timm.layers import activations
from torch import nn

from builders import clips, dits, mmdits, native_towers, unets
from builders.clips import clip_variants, pixels
from diva_rs._native import Schedule
from diva_rs.clip import adapt
from diva_rs.errors import ConfigError
from diva_rs.native import native_tower
from diva_rs.native.declared import DECLARED, SCHEDULES
from diva_rs.native.inspect import class_path

pytestmark = pytest.mark.parity


def quiet(name: str) -> nn.Module:
    """In eval mode: layers that drop something at random are at rest."""
    return clips._randomised(MORE[name], DTYPES.get(name, torch.float64)).eval()


def float32_norms() -> nn.Module:
    """As open_clip builds a model that is to run in half precision."""
    text, vision = clips._TEXT, clips._VISION
    return open_clip.CLIP(clips.EMBED, vision_cfg=vision, text_cfg=text, cast_dtype=torch.bfloat16)


def timm_activation(make: Callable[[], nn.Module]) -> nn.Module:
    model = clips._timm("diva_test_siglip", "map", "none")
    trunk = model.visual.trunk
    for part in (*trunk.blocks, trunk.attn_pool):
        part.mlp.act = make()
    return model


def timm_dropping() -> nn.Module:
    model = clips._timm("diva_test_vit", "token", None)
    model.visual.trunk.patch_drop = timm.layers.PatchDropout(0.5, num_prefix_tokens=2)
    for block in model.visual.trunk.blocks:
        block.drop_path1 = timm.layers.DropPath(0.3)
    return model


# Towers of classes that no model of `clip_variants` has.
MORE: dict[str, Callable[[], nn.Module]] = {
    "open_clip-float32-norms": float32_norms,
    "open_clip-patch-dropout-at-rest": partial(clips._open_clip, patch_dropout=0.5),
    "timm-dropping-at-rest": timm_dropping,
    "timm-quick-gelu": partial(timm_activation, activations.QuickGELU),
    "timm-gelu": partial(timm_activation, activations.GELU),
    "timm-gelu-tanh": partial(timm_activation, activations.GELUTanh),
    "transformers-clip-gelu-new": partial(clips._hf_full, "CLIP", hidden_act="gelu_new"),
    "transformers-metaclip2-projection": partial(clips._hf_vision, "MetaClip2", "VisionModelWithProjection"),
}
DTYPES = {"open_clip-float32-norms": torch.float32}  # the only one in which the library itself can run
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
# Classes of other versions of the libraries than the installed ones, and of one that is not installed.
ABSENT = {
    "clip.model.LayerNorm",  # as LayerNormFp32, which is tested
    "transformers.activations.PytorchGELUTanh",  # the name of GELUTanh in 4.x
    "transformers.models.clip.modeling_clip.CLIPVisionTransformer",
    "transformers.models.metaclip_2.modeling_metaclip_2.MetaClip2VisionTransformer",
    "transformers.models.siglip.modeling_siglip.SiglipVisionTransformer",
    "transformers.models.siglip.modeling_siglip.SiglipVisionModelWithProjection",
}


@pytest.fixture(autouse=True)
def _stand_in_as_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    native_towers.as_the_original(monkeypatch)


def kinds(*models: nn.Module) -> set[str]:
    return {class_path(module) for model in models for module in model.modules()}


def towers() -> set[str]:
    variants = clip_variants()
    known = [adapt(variants[name]()).module for name in test_native_towers.NATIVE]
    return kinds(*known, *(adapt(quiet(name)).module for name in MORE))


PARITY = {
    "vision_transformer": towers,
    "unet_2d_condition": lambda: kinds(*(unets.Case(name, torch.float32).unet for name in unets.VARIANTS)),
    "dit": lambda: kinds(*map(dits.build, dits.VARIANTS)),
    "mmdit": lambda: kinds(*map(mmdits.build, mmdits.VARIANTS)),
    "autoencoder_kl_encoder": lambda: kinds(*map(test_native_vae.build, test_native_vae.VARIANTS)),
}


@pytest.mark.parametrize("network", DECLARED)
def test_every_declared_class_is_in_a_parity_test(network: str) -> None:
    missing = DECLARED[network] - PARITY[network]()
    assert missing == ABSENT & DECLARED[network]


def test_every_prediction_that_the_core_takes_is_declared() -> None:
    with pytest.raises(ConfigError) as refused:
        Schedule.from_alphas_cumprod(torch.tensor([0.9, 0.1]), "another")
    named = set(re.findall(r'"(\w+)"', str(refused.value).partition(" is not one of ")[2]))
    assert named and named == SCHEDULES["predictions"]


@pytest.mark.parametrize("name", sorted(ABSENT))
def test_absent_classes_are_not_installed(name: str) -> None:
    module, _, cls = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), cls, None)
    except ModuleNotFoundError:
        found = None
    assert found is None or kind_of(found) != name


def kind_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


@pytest.mark.parametrize("name", MORE)
def test_more_towers(name: str) -> None:
    model = quiet(name)
    dtype = next(model.parameters()).dtype
    images, tower = pixels(model, dtype=dtype), adapt(model)
    theirs, expected = test_native_towers.through(model, tower.tokens, images)
    ours, found = test_native_towers.through(model, native_tower(tower).tokens, images)
    assert float((ours - theirs).abs().max()) <= TOLERANCE[dtype] * float(theirs.abs().max())
    test_native_towers.assert_same(found, expected, TOLERANCE[dtype])
