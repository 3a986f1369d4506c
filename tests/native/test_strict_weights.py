"""Native networks take exactly the weights of their configuration: a wrong key, size or dtype is named."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from builders import dits, mmdits, native_towers, unets
from builders.clips import clip_variants
from builders.diffusion import tiny_vae
from diva_rs import _native
from diva_rs.clip import adapt
from diva_rs.errors import WeightsError
from diva_rs.native.dit import dit_config
from diva_rs.native.inspect import class_path
from diva_rs.native.mmdit import MMDIT
from diva_rs.native.unet import unet_config
from diva_rs.native.vae import vae_config
from diva_rs.native.vision import describe

pytestmark = pytest.mark.hostile

Parts = tuple[str, dict[str, Any], dict[str, Tensor]]


def dit() -> Parts:
    model = dits.build("affine")
    config = {**dit_config(model), "label": "replace", "checkpoint": False}
    return "dit", config, dict(model.named_buffers()) | dict(model.named_parameters())


def mmdit(name: str) -> Callable[[], Parts]:
    def parts() -> Parts:
        model = mmdits.build(name)
        config = {**MMDIT.configs[class_path(model)](model), "checkpoint": False}
        return "mmdit", config, dict(model.named_buffers()) | dict(model.named_parameters())

    return parts


def unet() -> Parts:
    model = unets.Case("sd1").unet
    config = {**unet_config(model), "text_time": None, "checkpoint": False}
    return "unet_2d_condition", config, dict(model.state_dict())


def vae() -> Parts:
    model = tiny_vae(block_out_channels=(12, 24, 24), norm_num_groups=3).double()
    own = {k: p for k, p in model.named_parameters() if k.startswith(("encoder.", "quant_conv."))}
    return "autoencoder_kl_encoder", vae_config(model), own


def tower(name: str) -> Callable[[], Parts]:
    def parts() -> Parts:
        config, weights = describe(adapt(clip_variants()[name]()))
        return "vision_transformer", {**config, "compute": None, "checkpoint": False}, weights

    return parts


MMDITS = {name: mmdit(name) for name in ("flux", "sd3-dual")}
TOWERS = {name: tower(name) for name in native_towers.ONE_PER_FAMILY}
NETWORKS = {"dit": dit, "unet": unet, "vae": vae, **MMDITS, **TOWERS}


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_are_strict_both_ways(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    native_towers.as_the_original(monkeypatch)
    kind, config, weights = NETWORKS[name]()
    _native.Network(kind, config, weights)
    for key, weight in weights.items():
        rest = {other: value for other, value in weights.items() if other != key}
        shape, wrong = str(list(weight.shape)), weight.new_zeros(*weight.shape, 2)
        with pytest.raises(WeightsError, match=f"`{key}` is missing.*{re.escape(shape)}"):
            _native.Network(kind, config, rest)
        sizes = re.escape(f"has shape {list(wrong.shape)}, expected {shape}")
        with pytest.raises(WeightsError, match=f"`{key}` {sizes}"):
            _native.Network(kind, config, {**rest, key: wrong})
    with pytest.raises(WeightsError, match=r"`another\.weight` is unexpected"):
        _native.Network(kind, config, {**weights, "another.weight": torch.zeros(1, dtype=weight.dtype)})
    other = weight.float() if weight.dtype == torch.float64 else weight.double()
    with pytest.raises(WeightsError, match=rf"`{key}` is (Float|Double).*, but `.*` is (Float|Double)"):
        _native.Network(kind, config, {**weights, key: other})
    with pytest.raises(WeightsError, match="is Half"):
        _native.Network(kind, config, {key: value.half() for key, value in weights.items()})
