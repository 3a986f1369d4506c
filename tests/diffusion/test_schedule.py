"""The noise schedule against diffusers: tables, noisy latents, targets, loss weights, over every branch."""

import copy
import doctest
import pickle

import diffusers
import numpy as np
import pytest
import torch
from diffusers.training_utils import compute_snr

from diva_rs._native import Schedule
from diva_rs.diffusion.schedule import FLOW_MATCHING, schedule_from_scheduler
from diva_rs.native.declared import SCHEDULES

pytestmark = pytest.mark.parity

# Everything that is declared; what has no counterpart in diffusers fails.
BETA_SCHEDULES = [
    "exp",
    "laplace",
    "linear",
    "scaled_linear",
    "sigmoid",
    "squaredcos_cap_v2",
    "trained_betas",
]
PREDICTIONS = sorted(SCHEDULES["predictions"] - {"flow"})
FLOWS = [{}, {"shift": 3.0}, {"num_train_timesteps": 250, "shift": 1.5}, {"use_dynamic_shifting": True}]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SCHEDULERS = [getattr(diffusers, name) for name in sorted(SCHEDULES["schedulers"] - {FLOW_MATCHING})]


def pair(beta_schedule, steps, zero_snr=False, prediction="epsilon"):
    """The same schedule twice: (ours, diffusers')."""
    options = {
        "num_train_timesteps": steps,
        "rescale_betas_zero_snr": zero_snr,
        "prediction_type": prediction,
    }
    named = {"beta_schedule": beta_schedule}
    if beta_schedule == "trained_betas":
        named = {"trained_betas": np.geomspace(1e-4, 0.3, steps)}
    if beta_schedule == "exp":  # of all diffusers' schedulers this one alone knows it
        heun = diffusers.HeunDiscreteScheduler(num_train_timesteps=steps, beta_schedule="exp")
        named = {"trained_betas": heun.betas}
    theirs = diffusers.DDPMScheduler(**options, **named)
    return schedule_from_scheduler(theirs), theirs


def batch(shape, dtype, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    timesteps = torch.randint(0, steps, (shape[0],), generator=generator)
    timesteps[0], timesteps[-1] = 0, steps - 1  # both ends of every schedule
    return latents, noise, timesteps


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("steps", [2, 10, 333, 1000])
@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
def test_tables_are_equal_bit_for_bit(beta_schedule, steps, zero_snr):
    ours, theirs = pair(beta_schedule, steps, zero_snr)
    assert len(ours) == steps
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    if zero_snr:
        assert ours.alphas_cumprod[-1] == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
def test_noise_and_targets_are_equal_bit_for_bit(beta_schedule, zero_snr, prediction, dtype):
    ours, theirs = pair(beta_schedule, 1000, zero_snr, prediction)
    latents, noise, timesteps = batch((5, 4, 6, 5), dtype, 1000)
    noisy, target, model_timesteps = ours.add_noise(latents, noise, timesteps)
    expected = {
        "epsilon": noise,
        "v_prediction": theirs.get_velocity(latents, noise, timesteps),
        "sample": latents,
    }[prediction]
    assert torch.equal(noisy, theirs.add_noise(latents, noise, timesteps)) and noisy.dtype == dtype
    assert torch.equal(target, expected) and target.dtype == dtype
    assert torch.equal(model_timesteps, timesteps)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_known_scheduler(scheduler, prediction):
    options = {"num_train_timesteps": 100, "beta_schedule": "scaled_linear", "beta_end": 0.05}
    theirs = scheduler(**options, prediction_type=prediction)
    ours = schedule_from_scheduler(theirs)
    assert ours.prediction_type == prediction
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    # Some scale x_t by 1 / signal, so the ratio of noise to signal is what they share (some in float32).
    theirs.set_timesteps(100)
    timesteps = torch.tensor([1, 25, 51, 97, 99])
    sampled = torch.stack([theirs.timesteps[(theirs.timesteps - t).abs().argmin()] for t in timesteps])
    one = torch.ones(5, 1, dtype=torch.float64)
    ratio = ours.add_noise(0 * one, one, timesteps)[0] / ours.add_noise(one, 0 * one, timesteps)[0]
    expected = theirs.add_noise(0 * one, one, sampled) / theirs.add_noise(one, 0 * one, sampled)
    torch.testing.assert_close(ratio, expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DPMSolverMultistepScheduler,
        diffusers.EulerAncestralDiscreteScheduler,
        diffusers.EulerDiscreteScheduler,
        diffusers.UniPCMultistepScheduler,
    ],
)
def test_a_lifted_last_entry_is_taken_as_it_is(scheduler):
    theirs = scheduler(beta_schedule="linear", rescale_betas_zero_snr=True)
    ours = schedule_from_scheduler(theirs).alphas_cumprod
    assert torch.equal(ours, theirs.alphas_cumprod) and ours[-1] == 2**-24 > ours[-2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", FLOWS)
def test_flow_matching(options, dtype):
    theirs = getattr(diffusers, FLOW_MATCHING)(**options)
    steps = theirs.config.num_train_timesteps
    ours = schedule_from_scheduler(theirs)
    assert (len(ours), ours.prediction_type) == (steps, "flow")
    assert torch.equal(ours.sigmas, theirs.sigmas.flip(0))
    latents, noise, indices = batch((6, 4, 6, 5), dtype, steps)
    noisy, target, model_timesteps = ours.add_noise(latents, noise, indices)
    assert torch.equal(model_timesteps, theirs.timesteps.flip(0)[indices])
    assert torch.equal(noisy, theirs.scale_noise(latents, model_timesteps, noise)) and noisy.dtype == dtype
    assert torch.equal(target, noise - latents) and target.dtype == dtype


def test_flow_matching_keeps_the_training_levels_after_a_sampling_run():
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    before = schedule_from_scheduler(theirs).sigmas
    theirs.set_timesteps(10)
    assert torch.equal(schedule_from_scheduler(theirs).sigmas, before)
    theirs.set_shift(2.0)
    fresh = diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0)
    assert torch.equal(schedule_from_scheduler(theirs).sigmas, fresh.sigmas.flip(0))


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
def test_min_snr_weights(beta_schedule, zero_snr, prediction, gamma):
    ours, theirs = pair(beta_schedule, 1000, zero_snr, prediction)
    timesteps = torch.arange(1000)
    # As diffusers' examples/text_to_image/train_text_to_image.py computes them.
    snr = compute_snr(theirs, timesteps)
    expected = torch.stack([snr, gamma * torch.ones_like(timesteps)], dim=1).min(dim=1)[0]
    if prediction == "epsilon":
        expected = torch.where(snr == 0, torch.ones_like(snr), expected / snr)  # 0 / 0 there, its limit here
    elif prediction == "v_prediction":
        expected = expected / (snr + 1)
    for dtype in DTYPES:
        weights = ours.weights(timesteps, gamma, torch.empty(2, 3, dtype=dtype))
        assert torch.equal(weights, expected.to(dtype)) and weights.dtype == dtype
    assert expected.isfinite().all()


def test_min_snr_weights_of_flow_matching():
    ours = schedule_from_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    sigma = ours.sigmas.double()
    expected = ((1 - sigma) / sigma).square().clamp_max(5.0) * sigma**2
    weights = ours.weights(torch.arange(1000), 5.0, torch.empty(1))
    torch.testing.assert_close(weights.double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("host_timesteps", [False, True])
@pytest.mark.parametrize("prediction", [*PREDICTIONS, "flow"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_meta_tensors_go_through_without_a_host_read(dtype, prediction, host_timesteps):
    ours = (
        Schedule.flow(torch.linspace(0.1, 1, 10))
        if prediction == "flow"
        else pair("linear", 10, False, prediction)[0]
    )
    latents = torch.empty(3, 4, 6, 5, dtype=dtype, device="meta")
    timesteps = torch.tensor([1, 2, 3], device="cpu" if host_timesteps else "meta")
    noisy, target, model_timesteps = ours.add_noise(latents, latents, timesteps)
    weights = ours.weights(timesteps, 5.0, latents)
    for tensor, shape, kind in [
        (noisy, (3, 4, 6, 5), dtype),
        (target, (3, 4, 6, 5), dtype),
        (model_timesteps, (3,), torch.float32 if prediction == "flow" else torch.int64),
        (weights, (3,), dtype),
    ]:
        assert (tensor.device.type, tensor.shape, tensor.dtype) == ("meta", shape, kind)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_gradient_passes(prediction, dtype):
    ours = pair("linear", 10, False, prediction)[0]
    latents, noise, timesteps = batch((2, 4, 3, 3), dtype, 10)
    out = ours.add_noise(latents.requires_grad_(), noise.requires_grad_(), timesteps)
    assert not any(tensor.requires_grad for tensor in out)
    assert torch.is_grad_enabled()


def test_the_schedule_keeps_its_own_table():
    theirs = diffusers.DDPMScheduler()
    ours = schedule_from_scheduler(theirs)
    before = ours.alphas_cumprod
    theirs.alphas_cumprod.zero_()
    ours.alphas_cumprod.zero_()
    assert torch.equal(ours.alphas_cumprod, before) and before.min() > 0
    assert schedule_from_scheduler(ours) is ours


@pytest.mark.parametrize(
    "ours",
    [
        Schedule.from_alphas_cumprod(torch.linspace(1, 0, 9), "sample"),
        Schedule.flow(torch.linspace(1, 0, 9), 500),
    ],
)
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_and_pickles(ours, clone):
    twin = clone(ours)
    latents, noise, timesteps = batch((2, 4, 3, 3), torch.float32, len(ours))
    assert (repr(twin), twin.prediction_type) == (repr(ours), ours.prediction_type)
    for a, b in zip(
        ours.add_noise(latents, noise, timesteps), twin.add_noise(latents, noise, timesteps), strict=True
    ):
        assert torch.equal(a, b)


def test_the_examples_in_the_docstrings():
    runner, parser = doctest.DocTestRunner(), doctest.DocTestParser()
    documented = {"Schedule": Schedule.__doc__}
    documented |= {
        name: getattr(Schedule, name).__doc__ for name in vars(Schedule) if not name.startswith("_")
    }
    for name, text in documented.items():
        assert text, name
        runner.run(parser.get_doctest(text, {"Schedule": Schedule}, name, None, None))
    assert runner.tries >= 10 and runner.failures == 0
