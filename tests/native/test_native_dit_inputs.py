"""Configurations and inputs that a native DiT refuses."""

import pytest
from torch import Tensor, nn

from builders.dits import build, inputs, native_dit
from diva_rs import _native
from diva_rs.errors import ConfigError, ShapeError
from diva_rs.native.dit import dit_config

pytestmark = pytest.mark.hostile


def parts(dit: nn.Module, **fields) -> tuple[dict, dict[str, Tensor]]:
    weights = dict(dit.named_parameters()) | dict(dit.named_buffers())
    return {**dit_config(dit), "label": "replace", "checkpoint": False, **fields}, weights


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 3}, "width 16 must be a multiple of 4 and of the 3 heads"),
        ({"heads": 0}, "heads is 0"),
        ({"patch_size": -1}, "patch_size is -1"),
        ({"grid": 2**40}, "grid is"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"out_channels": 9}, "4 channels in and 9 out"),
        ({"label": "add"}, "config.label: unknown variant `add`, expected `replace` or `join`"),
        ({"label": "join", "num_classes": 11}, "has none after 11 classes"),
        ({"activation": "relu"}, "config.activation: unknown variant"),
        ({"norm_eps": (1e-6, float("nan"), 1e-6)}, r"config.norm_eps\[1\] is NaN: it must be finite"),
        ({"time_channels": 1}, "at least 2"),
        ({"depth": 1}, "unknown field `depth`"),
        ({"width": "wide"}, 'config.width: invalid type: string "wide", expected i64'),
    ],
)
def test_impossible_configurations(fields: dict, message: str) -> None:
    config, weights = parts(build("learned-variance"), **fields)
    with pytest.raises(ConfigError, match=message):
        _native.Network("dit", config, weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, t, c: (x[:, :3], t, c), r"`noisy` has shape \[2, 3, 8, 8\], expected \(B, 4, n, n\)"),
        (lambda x, t, c: (x[:, :, :6], t, c), "`noisy`"),
        (lambda x, t, c: (x[:, :, :7, :7], t, c), "multiple of the patch size 2"),
        (lambda x, t, c: (x[:0], t[:0], c[:0]), "`noisy`.*nothing of it empty"),
        (lambda x, t, c: (x[0], t, c), "`noisy`"),
        (lambda x, t, c: (x.long(), t, c), "`noisy` is Int64, expected a floating-point dtype"),
        (lambda x, t, c: (x, t[:1], c), r"`timesteps` has shape \[1\], expected numbers \[2\]"),
        (lambda x, t, c: (x, t[0], c), "`timesteps`"),
        (lambda x, t, c: (x, t > 4, c), "`timesteps`"),
        (lambda x, t, c: (x, t, c[:1]), r"`condition.pooled` has shape \[1, 16\], expected \[2, 16\]"),
        (lambda x, t, c: (x, t, c[:, :0]), "S > 0"),
        (lambda x, t, c: (x, t, c[:, 0]), "`condition`"),
        (lambda x, t, c: (x, t, c[:, :, :8]), "`condition.pooled`"),
        (lambda x, t, c: (x, t, c.int()), "`condition` is Int, expected a floating-point dtype"),
    ],
)
def test_impossible_inputs(change, message: str) -> None:
    dit = build("learned-variance")
    with pytest.raises(ShapeError, match=message):
        native_dit(dit).predict(*change(*inputs(dit)))
