"""What a native UNet is given that does not fit: inputs, weights, configurations, fixed tensors."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from builders.unets import Case
from diva_rs import _native
from diva_rs.errors import ConfigError, ShapeError
from diva_rs.native.unet import unet_config

pytestmark = pytest.mark.hostile


def test_inputs_that_do_not_fit_are_named() -> None:
    case = Case("sd1")
    noisy, timesteps, condition = case.noisy, case.timesteps, case.condition
    for inputs, message in {
        (noisy.long(), timesteps, condition): "`noisy` is Int64, expected a floating-point dtype",
        (noisy, timesteps, condition.int()): "`condition` is Int, expected a floating-point dtype",
        (noisy[0], timesteps, condition): "`noisy` has shape [4, 8, 8], expected (B, 4, h, w)",
        (noisy[:, :3], timesteps, condition): "`noisy` has shape [2, 3, 8, 8]",
        (noisy[..., :0], timesteps, condition): "nothing of it empty",
        (noisy, timesteps[:1], condition): "`timesteps` has shape [1], expected [2]",
        (noisy, timesteps, condition[:1]): "`condition` has shape [1, 5, 24], expected (2, S, 24)",
        (noisy, timesteps, condition[..., :20]): "`condition` has shape [2, 5, 20]",
        (noisy, timesteps, condition[:, :0]): "S > 0",
    }.items():
        with pytest.raises(ShapeError, match=re.escape(message)):
            case.native.predict(*inputs)


def parts(name: str = "sd1") -> tuple[dict[str, Any], dict[str, Tensor]]:
    unet = Case(name).unet
    return unet_config(unet) | {"text_time": None, "checkpoint": False}, dict(unet.state_dict())


def test_configurations_that_make_no_network_are_refused() -> None:
    config, weights = parts()
    down, up = config["down_blocks"], config["up_blocks"]
    for changes, message in [
        ({"block_out_channels": [16]}, "all need the same number"),
        ({"block_out_channels": []}, "all need the same number"),
        ({"norm_num_groups": 0}, "each size must be from 1 to 1048576"),
        ({"norm_num_groups": 5}, "16 channels cannot be normalised in 5 groups"),
        ({"out_channels": 9}, "4 channels in and 9 out"),
        ({"downsample_padding": 2}, "must be 0 or 1"),
        ({"mid_block_scale_factor": 0.0}, "must be finite and not 0"),
        ({"down_blocks": [{"depths": [], "heads": 1}, down[1]]}, r"transformer layers \[\]"),
        ({"down_blocks": [{"depths": [1, 0], "heads": 1}, down[1]]}, "has some, or none has"),
        ({"down_blocks": [{"depths": [1], "heads": 0}, down[1]]}, "0 attention heads"),
        ({"down_blocks": [{"depths": [-1], "heads": 1}, down[1]]}, r"config\.down_blocks\[0\]\.depths\[0\]"),
        ({"down_blocks": [{"depths": [1]}, down[1]]}, r"down_blocks\[0\]: missing field `heads`"),
        ({"up_blocks": [{"depths": [0], "heads": 1}, up[1]]}, "needs one more"),
        ({"freq_shift": 8}, "not half of width 16"),
        ({"resnet_time_scale_shift": "spatial"}, "expected `default` or `scale_shift`"),
        ({"class_embed_type": "timestep"}, "config.class_embed_type: unknown variant"),
        ({"class_embed_type": "projection"}, "projection_class_embeddings_input_dim is None"),
        (
            {
                "text_time": {"addition_time_embed_dim": 8, "pixels_per_latent": 0},
                "projection_class_embeddings_input_dim": 72,
            },
            "pixels_per_latent 0",
        ),
        ({"in_channels": "four"}, "config.in_channels: "),
        ({"colour": 1}, "unknown field `colour`"),
    ]:
        with pytest.raises(ConfigError, match=message):
            _native.Network("unet_2d_condition", config | changes, weights)
    del config["norm_eps"]
    with pytest.raises(ConfigError, match="missing field `norm_eps`"):
        _native.Network("unet_2d_condition", config, weights)


def test_fixed_tensors_must_be_there_and_fit() -> None:
    config, weights = parts("unclip")
    with pytest.raises(ConfigError, match="needs encoder_hidden_states"):
        _native.Network("unet_2d_condition", config, weights)
    with pytest.raises(ShapeError, match=re.escape("expected (1, L, 24)")):
        _native.Network(
            "unet_2d_condition", config, weights, {"encoder_hidden_states": torch.zeros(1, 5, 20)}
        )
    text = {"encoder_hidden_states": torch.zeros(1, 5, 24)}
    for labels, wrong, message in (
        ({"class_scale": torch.ones(1, 10)}, ConfigError, "needs class_shift"),
        ({"class_scale": torch.ones(1, 21), "class_shift": torch.zeros(1, 20)}, ConfigError, "21 wide"),
        ({"class_scale": torch.ones(1, 10), "class_shift": torch.zeros(1, 10)}, ShapeError, "(1, 20)"),
    ):
        with pytest.raises(wrong, match=re.escape(message)):
            _native.Network("unet_2d_condition", config, weights, text | labels)
    with pytest.raises(ConfigError, match='unknown tensor "text"'):
        _native.Network("unet_2d_condition", config, weights, {"text": torch.zeros(1, 5, 24)})
    config, weights = parts("sdxl")
    config["text_time"] = {"addition_time_embed_dim": 8, "pixels_per_latent": 8}
    with pytest.raises(ConfigError, match="needs text_embeds"):
        _native.Network("unet_2d_condition", config, weights)
    for fixed in (
        {"text_embeds": torch.zeros(2, 24)},
        {"text_embeds": torch.zeros(1, 24), "time_ids": torch.zeros(1, 5)},
    ):
        with pytest.raises(ShapeError, match="`text_embeds` has shape"):
            _native.Network("unet_2d_condition", config, weights, fixed)
