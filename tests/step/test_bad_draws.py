"""Bad settings and ids are exceptions of diva_rs that name what is wrong; ranges are in `tests/draws.rs`."""

import numpy as np
import pytest
import torch

from diva_rs import ConfigError, DataError, _native
from diva_rs.step.draws import DrawPlan, augment_seed, draw

pytestmark = pytest.mark.hostile

GOOD = {"seed": 0, "draws": 2, "latent_shape": (4, 8, 8), "patches": 9}
HUGE = 2**70


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed", -1, r"`seed` is -1, expected a whole number from 0 to 2\*\*64 - 1"),
        ("seed", 2**64, "`seed` is 18446744073709551616"),
        ("seed", 0.5, "`seed` is 0.5"),
        ("draws", HUGE, "`draws` is 1180591620717411303424, expected a whole number"),
        ("draws", "2", "`draws` is '2', expected a whole number"),
        ("latent_shape", (4, -8), r"`latent_shape` is \(4, -8\), expected a sequence of at most 8 whole"),
        ("latent_shape", 4, "`latent_shape` is 4, expected a sequence"),
        ("latent_shape", (1,) * 9, "expected a sequence of at most 8"),
        ("latent_shape", [4] * 1000, r"4, 4\.\.\., expected a sequence of at most 8"),
        ("patches", -1, "`patches` is -1"),
        ("choose", 10, "`choose` is 10 of 9 patches; without replacement it can be at most 9"),
        ("choose", -1, "`choose` is -1"),
        ("density", "half", "`density` is 'half', expected a number"),
        ("density", 10**400, "`density` is 1000"),
        ("replacement", True, "`replacement=True` needs `choose`"),
        ("replacement", "yes", "`replacement` is 'yes', expected True or False"),
        (
            "timesteps",
            "gaussian",
            '`timesteps` is \'gaussian\', expected "uniform", "stratified" or "logit-normal"',
        ),
        ("timesteps", 3, "`timesteps` is 3"),
        ("timestep_range", (0, HUGE), "expected a pair of numbers"),
        ("timestep_range", (1, 2, 3), r"`timestep_range` is \(1, 2, 3\), expected a pair of numbers"),
        ("timestep_range", 1000, "`timestep_range` is 1000, expected a pair"),
    ],
)
def test_each_setting_is_named(field, value, message):
    with pytest.raises(ConfigError, match=message):
        DrawPlan(**{**GOOD, field: value})


def test_settings_that_do_not_fit_together():
    with pytest.raises(ConfigError, match="`choose` and `density` are both given"):
        DrawPlan(**GOOD, choose=3, density=0.3)
    with pytest.raises(ConfigError, match="`patches` is 0, but tokens are to be chosen"):
        draw(0, [1], 2, (4,), choose=3)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "the batch is empty"),
        ([1, -2], r"ids\[1\] is -2, expected 0 to 2\*\*64 - 1"),
        ([2**64], r"ids\[0\] is 18446744073709551616"),
        ([10**5000], r"ids\[0\] is <int>, expected 0 to"),
        ([1, 2.0], r"ids\[1\] is 2.0 \(float\), expected an integer or a string"),
        ([None], r"ids\[0\] is None"),
        ([True], r"ids\[0\] is True \(bool\)"),
        ([b"a"], r"ids\[0\] is b'a' \(bytes\)"),
        ([[1]], r"ids\[0\] is \[1\] \(list\)"),
        ("a.png", r"ids: 'a.png' is a single value, expected one id per sample, such as \['a.png'\]"),
        (7, "ids: 7 is a single value"),
        (np.zeros((2, 2), int), r"ids: an array of shape \(2, 2\), expected one id per sample"),
        (torch.tensor(3), r"ids: an array of shape \(\)"),
        (torch.tensor([1, -2]), r"ids\[1\] is -2"),
        (torch.tensor([0.5]), r"ids\[0\] is 0.5 \(float\)"),
        (torch.zeros(2, dtype=torch.int64, device="meta"), "ids: .* on meta, a dense tensor"),
        ([torch.zeros((), dtype=torch.int64, device="meta")], r"ids\[0\] is tensor"),
    ],
)
def test_ids_that_cannot_be_used(ids, message):
    with pytest.raises(DataError, match=message):
        DrawPlan(**GOOD).draw(ids)


@pytest.mark.parametrize("epoch", [-1, 2**64, 0.5, None, "1"])
def test_epoch_is_a_whole_number(epoch):
    with pytest.raises(ConfigError, match=r"`epoch` is .*, expected a whole number"):
        DrawPlan(**GOOD).draw([1], epoch)
    with pytest.raises(ConfigError, match=r"`epoch` is .*, expected a whole number"):
        augment_seed(0, 1, epoch)


def test_the_door_takes_keys_only():
    plan = _native.DrawPlan(0, 1, (4,), 0)
    for ids in ([1, 2], np.zeros(3), np.zeros((2, 2), np.uint64), None):
        with pytest.raises(
            DataError, match=r"must be a one-dimensional uint64 array; diva_rs.draws.sample_keys makes"
        ):
            plan.draw(ids, 0)
