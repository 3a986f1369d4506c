"""Every function and method of `_native` with hostile arguments: never a panic, an abort or a hang.

`make fuzz` runs many more of the same cases.
"""

import pytest
import torch

from diva_rs import _native
from diva_rs.errors import DataError, DeviceError
from fuzz.engine import run
from fuzz.native import calls

pytestmark = pytest.mark.hostile

CASES = 300


def test_the_native_module_never_panics(tmp_path):
    """PanicException would be a failure here, and so would a panic that was stopped at the door."""
    report = run("native", CASES, keep=tmp_path)
    assert not report.failures, report
    assert report.cases == CASES
    results = sum(count for outcome, count in report.outcomes.items() if outcome.endswith(": result"))
    assert CASES // 10 < results < CASES // 2, report


def test_everything_that_is_exported_is_called():
    called = {name.split(",")[0].split(" ")[0] for name in calls()}
    # Other objects make these three.
    for name in set(_native.__all__) - {"__torch__", "__version__", "Tape", "Recording", "View"}:
        exported = getattr(_native, name)
        methods = (
            [key for key in dir(exported) if not key.startswith("_") and callable(getattr(exported, key))]
            if isinstance(exported, type)
            else []
        )
        if name != "Schedule":  # made by its static methods
            assert name in called
        assert {f"{name}.{method}" for method in methods} <= called


@pytest.mark.parametrize(
    "refused, message",
    [
        (
            torch.zeros(3, dtype=torch.uint64),
            r"`alphas_cumprod` has a dtype .*torch.uint64",
        ),
        (torch.nested.nested_tensor([torch.zeros(2), torch.zeros(1)]), "`alphas_cumprod` is a nested tensor"),
    ],
)
def test_a_tensor_that_the_core_could_not_even_describe_is_refused_by_name(refused, message):
    with pytest.raises(DataError, match=message):
        _native.Schedule.from_alphas_cumprod(refused)


@pytest.mark.parametrize(
    "call",
    [
        lambda value: _native.Schedule.flow(torch.linspace(1.0, 0.001, 10), value),
        lambda value: _native.lr_factor("cosine", value, 2, 10),
        lambda value: _native.Optimizer("sgd", [("clip", value, 0.0, {})]),
        lambda value: _native.Optimizer("adamw", [], betas=(0.9, value)),
        lambda value: _native.Optimizer("sgd", [("clip", 1.0, 0.0, {"weight": torch.zeros(1)})]).scale_grads(
            value
        ),
        lambda value: _native.Pixels("unit", "symmetric", "bicubic", True, [value] * 3, [0.5] * 3),
    ],
)
def test_a_number_on_the_meta_device_is_a_type_error(call):
    """Its conversion raises torch's RuntimeError, which names no argument."""
    with pytest.raises(TypeError, match=r"argument .*expected a number: .*meta"):
        call(torch.zeros((), dtype=torch.int64, device="meta"))


def test_a_tensor_larger_than_its_storage_is_not_read():
    """Its sizes promise a hundred numbers; the memory behind them holds one."""
    shrunk = torch.linspace(0.9, 0.1, 100, dtype=torch.float64)
    schedule = _native.Schedule.from_alphas_cumprod(shrunk)
    latents = torch.zeros(2, 50)
    timesteps = torch.tensor([1, 2])
    schedule.add_noise(latents, latents, timesteps)
    latents.untyped_storage().resize_(4)
    with pytest.raises(DeviceError, match="larger than its storage"):
        schedule.add_noise(latents, torch.zeros(2, 50), timesteps)
