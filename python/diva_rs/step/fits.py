"""Whether models and recipe fit each other when a trainer is made, and still do at a later step."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from diva_rs.diffusion import Teacher
from diva_rs.errors import ConfigError, DeviceError
from diva_rs.recipes.recipe import Recipe
from diva_rs.recipes.stage import PlannedStage

Parameters = Mapping[str, nn.Parameter]

_STUDENT_DTYPE = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}


def student_home(parameters: Parameters, precision: str) -> tuple[torch.device, torch.dtype]:
    """The device and the dtype of CLIP's vision parameters, which all have the recipe's precision."""
    wanted = _STUDENT_DTYPE[precision]
    devices = {parameter.device for parameter in parameters.values()}
    if len(devices) != 1:
        names = ", ".join(sorted(map(str, devices)))
        raise DeviceError(f"CLIP's vision parameters lie on several devices ({names}): move them to one")
    for name, parameter in parameters.items():
        if parameter.dtype != wanted:
            fix = "clip.double()" if wanted == torch.float64 else "clip.float()"
            also = ', or precision="fp64"' if parameter.dtype == torch.float64 else ""
            raise ConfigError(
                f'{name} is {parameter.dtype}, precision="{precision}" trains {wanted} weights: call '
                f"{fix}{also}"
            )
    return devices.pop(), wanted


def denoiser_parameters(
    teacher: Teacher, device: torch.device, dtype: torch.dtype
) -> dict[str, nn.Parameter]:
    """The denoiser's parameters, which train in place: those of the module that the caller gave."""
    named = dict(teacher.given.named_parameters(prefix="denoiser"))
    for name, parameter in named.items():
        if parameter.dtype != dtype or parameter.device != device:
            raise ConfigError(
                f"{name} is {parameter.dtype} on {parameter.device}: a denoiser that trains needs {dtype} on "
                f"{device}, as CLIP has"
            )
    if teacher.denoiser is not teacher.given:
        raise ConfigError(
            f"the denoiser trains, but this teacher runs a copy of it on {teacher.device}: move the denoiser "
            "to CLIP's device and leave out Teacher(device=...)"
        )
    return named


def check_objective(recipe: Recipe, idle: Iterable[PlannedStage], teacher: bool, trained: bool) -> None:
    """Raise ConfigError where a stage has nothing to minimise, or needs a diffusion model and has none.

    ``idle`` are the stages without a loss; ``trained`` says whether the denoiser trains.
    """
    for stage in idle:
        where = f" in the stage from step {stage.first}" if recipe.stages else ""
        raise ConfigError(f"denoising=0 leaves nothing to minimise{where}: give terms, or an anchor")
    for stage in recipe.plan():
        for name in ("denoising", "contrast"):
            if not teacher and (trained or stage.weights[name]):
                what = "the denoiser trains" if trained else f"{name}={stage.weights[name]}"
                raise ConfigError(
                    f"unet is None, but {what}: give a diffusion model, or {name}=0 and terms that do without"
                )


def check_unmoved(
    clip: nn.Module, tower: Parameters, projector: Parameters, home: tuple[torch.device, torch.dtype]
) -> None:
    """Raise where parameters were moved, cast or replaced since a trainer was made for them.

    Raises:
        DeviceError: another device or dtype.
        ConfigError: a parameter of CLIP is another tensor now.
    """
    held, (device, dtype) = {id(parameter) for parameter in clip.parameters()}, home
    for name, parameter in tower.items():
        if id(parameter) not in held:
            raise ConfigError(
                f"{name} is another tensor than when this trainer was made, and would not train: move and "
                "load the model first (clip.to, load_state_dict with assign=True), then make the trainer"
            )
    for name, parameter in (*tower.items(), *projector.items()):
        if parameter.device != device or parameter.dtype != dtype:
            raise DeviceError(
                f"{name} is now {parameter.dtype} on {parameter.device}, but was {dtype} on {device} when "
                "this trainer was made: move the model first, then make the trainer"
            )
