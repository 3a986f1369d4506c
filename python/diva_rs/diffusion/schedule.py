"""The native noise schedule of a diffusers scheduler."""

from typing import Any

import diva_rs._native as _native
from diva_rs.errors import ConfigError

# The schedulers that a variance-preserving model may come with. They differ in how they sample; the noise
# levels that the model was trained on are `alphas_cumprod` in each of them. Other classes may keep something
# else under that name.
_KINDS = (
    *("DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep", "DPMSolverMultistep"),
    *("DPMSolverSinglestep", "EulerAncestralDiscrete", "EulerDiscrete", "HeunDiscrete", "LMSDiscrete"),
    *("KDPM2AncestralDiscrete", "KDPM2Discrete", "PNDM", "UniPCMultistep"),
)
VARIANCE_PRESERVING = frozenset(f"{kind}Scheduler" for kind in _KINDS)
FLOW_MATCHING = "FlowMatchEulerDiscreteScheduler"


def schedule_from_scheduler(scheduler: Any) -> _native.Schedule:
    """The noise levels and the prediction target that ``scheduler``'s model was trained with.

    A ``_native.Schedule`` is returned as it is. Diffusers' variance-preserving schedulers give their own
    ``alphas_cumprod`` (T,) and ``prediction_type``; FlowMatchEulerDiscreteScheduler gives its training sigmas
    (T,) in (0, 1], with ``shift`` applied, independent of calls of ``set_timesteps``. Another class or
    configuration is a ConfigError.

    >>> from diffusers import DDIMScheduler
    >>> schedule = schedule_from_scheduler(DDIMScheduler(prediction_type="v_prediction"))
    >>> len(schedule), schedule.prediction_type
    (1000, 'v_prediction')
    """
    if isinstance(scheduler, _native.Schedule):
        return scheduler
    names = {cls.__name__ for cls in type(scheduler).__mro__}
    config = getattr(scheduler, "config", None)
    if config is not None and FLOW_MATCHING in names:
        if config.get("invert_sigmas", False):
            raise ConfigError(
                f"scheduler: {FLOW_MATCHING} with invert_sigmas=True samples a model that was trained with "
                "time running the other way: only invert_sigmas=False is supported"
            )
        # `set_timesteps` replaces the training table by that of a sampling run: take that of a new scheduler.
        fresh = type(scheduler).from_config(config, shift=scheduler.shift)
        return _native.Schedule.flow(fresh.sigmas, config["num_train_timesteps"])
    if config is None or not names & VARIANCE_PRESERVING:
        known = ", ".join(sorted({*VARIANCE_PRESERVING, FLOW_MATCHING}))
        raise ConfigError(
            f"scheduler: {type(scheduler).__name__} is not one whose training noise is known here ({known}): "
            "give a schedule made by diva_rs._native.Schedule.from_alphas_cumprod or .flow instead"
        )
    # Options under which the same class trains another process than the one that `alphas_cumprod` describes.
    if config.get("timestep_type", "discrete") != "discrete":
        raise ConfigError(
            f"scheduler: timestep_type {config['timestep_type']!r} gives the model continuous noise levels "
            "(EDM), which have no integer timesteps: only 'discrete' is supported"
        )
    if config.get("use_flow_sigmas", False):
        raise ConfigError(
            f"scheduler: {type(scheduler).__name__} with use_flow_sigmas samples a flow-matching model: "
            f"give the {FLOW_MATCHING} that the model was trained with"
        )
    prediction = str(config.get("prediction_type", "epsilon"))
    return _native.Schedule.from_alphas_cumprod(scheduler.alphas_cumprod, prediction)
