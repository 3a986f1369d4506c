"""What the noise schedule refuses, and with which words."""

import diffusers
import pytest
import torch

from diva_rs import ConfigError, DataError, DeviceError, ShapeError
from diva_rs._native import Schedule
from diva_rs.diffusion.schedule import schedule_from_scheduler

pytestmark = pytest.mark.hostile


def test_bad_tables():
    table = torch.linspace(0.9, 0.1, 5)
    with pytest.raises(ShapeError, match=r"`alphas_cumprod` has shape \[1, 5\], expected \(T,\)"):
        Schedule.from_alphas_cumprod(table[None])
    with pytest.raises(ShapeError, match="`alphas_cumprod` is BFloat16, expected float32 or float64"):
        Schedule.from_alphas_cumprod(table.bfloat16())
    with pytest.raises(ConfigError, match=r"sigmas\[0\] is 1\.5"):
        Schedule.flow(torch.tensor([1.5, 0.5]))
    with pytest.raises(ConfigError, match="see sigmas"):
        _ = Schedule.flow(table).alphas_cumprod
    with pytest.raises(ConfigError, match="see alphas_cumprod"):
        _ = Schedule.from_alphas_cumprod(table).sigmas
    with pytest.raises(TypeError, match=r"expected a torch\.Tensor"):
        Schedule.flow([0.1, 0.5])


def test_bad_batches():
    ours = Schedule.from_alphas_cumprod(torch.linspace(0.99, 0.01, 10))
    x, t = torch.zeros(2, 4, 3, 3), torch.tensor([0, 9])
    for error, message, args in [
        (ShapeError, r"`noise` has shape \[2, 4, 3\], expected \[2, 4, 3, 3\]", (x, x[..., 0], t)),
        (ShapeError, "`noise` is Double, expected Float, the dtype of `latents`", (x, x.double(), t)),
        (ShapeError, "`latents` is Int64, expected a floating-point dtype", (x.long(), x.long(), t)),
        (ShapeError, r"`latents` has shape \[\]", (x.sum(), x.sum(), t)),
        (
            ShapeError,
            r"`timesteps` has shape \[1\], expected \[2\], one for each of `latents`",
            (x, x, t[:1]),
        ),
        (ShapeError, r"`timesteps` has shape \[2, 1\], expected \[2\]", (x, x, t[:, None])),
        (ShapeError, "`timesteps` is Float, expected int64", (x, x, t.float())),
        (DataError, r"timesteps\[1\] is 10, outside of \[0, 10\)", (x, x, t + 1)),
        (DataError, r"timesteps\[0\] is -1, outside of \[0, 10\)", (x, x, t - 1)),
        (DataError, "`latents` is not a dense tensor", (x.to_sparse(), x, t)),
        (DataError, "`noise` is not a dense tensor", (x, torch.eye(3).to_sparse_csr(), t)),
        (DataError, "`latents` has a dtype that is not supported", (x.to(torch.uint16), x, t)),
        (DeviceError, "`noise` is on another device than `latents`", (x, x.to("meta"), t)),
        (DeviceError, "`timesteps` is on another device than `latents`", (x, x, t.to("meta"))),
    ]:
        with pytest.raises(error, match=message):
            ours.add_noise(*args)
    for gamma in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"min_snr is .*, expected a finite number above 0"):
            ours.weights(t, gamma, x)
    with pytest.raises(DataError, match=r"timesteps\[1\] is 10"):
        ours.weights(t + 1, 5.0, x)


def test_unknown_schedulers_are_refused():
    flow = diffusers.FlowMatchEulerDiscreteScheduler
    for scheduler, message in [
        (diffusers.ScoreSdeVeScheduler(), "ScoreSdeVeScheduler is not one whose training noise is known"),
        (diffusers.CogVideoXDDIMScheduler(), "CogVideoXDDIMScheduler is not one"),
        (object(), "object is not one"),
        (flow(invert_sigmas=True), "invert_sigmas=True"),
        (diffusers.EulerDiscreteScheduler(timestep_type="continuous"), "timestep_type 'continuous'"),
        (diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True), "use_flow_sigmas"),
        (diffusers.DDPMScheduler(prediction_type="x0"), 'prediction_type "x0" is not one of'),
    ]:
        with pytest.raises(ConfigError, match=message):
            schedule_from_scheduler(scheduler)
