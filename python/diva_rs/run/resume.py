"""May this call go on with the run in that folder? Answered before anything is changed."""

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from diva_rs.errors import ConfigError, shown
from diva_rs.recipes.recipe import Recipe
from diva_rs.run.folder import RunFolder
from diva_rs.run.provenance import environment
from diva_rs.step.trainer import Trainer

_SAMPLED = 64  # values of each tensor that a fingerprint looks at


def open_run(folder: RunFolder, trainer: Trainer, resume: bool | str) -> dict[str, Any] | None:
    """Begin or go on: the state to go on from, or None for a run that begins. `resume` is post_train's.

    Raises:
        ConfigError: the run in the folder has another recipe, other models or more steps.
        WeightsError: all of its checkpoints are damaged.
    """
    facts = models_of(trainer)
    here = {**facts, "environment": environment(trainer.step_modules.device)}
    if resume is False:
        folder.clear()
    earlier = folder.recipe()
    if earlier is None and folder.steps():
        raise ConfigError(
            f"{folder.path} holds checkpoints, but no run.json: choose another folder, or resume=False, "
            "which replaces them"
        )
    state = None if earlier is None else folder.restore()
    if earlier is None or state is None:
        folder.clear()  # of a run that ended before its first checkpoint, only the log is there
        folder.begin(trainer.recipe, here, 0)
        return None
    done = int(state["counters"]["steps_done"])
    was = folder.facts() or {}
    _check_steps(folder, earlier, trainer.recipe, done)
    if resume != "force":
        _check_same(folder, earlier, trainer.recipe, was, facts)
    if trainer.recipe.anchor and was.get("clip_start") != facts["clip_start"]:
        raise ConfigError(
            f"anchor={trainer.recipe.anchor} holds to the CLIP that the run in {folder.path} began from, and "
            "this one has other weights (training changes it in place): load the model anew"
        )
    folder.begin(trainer.recipe, {**here, "clip_start": was.get("clip_start")}, done)
    return state


def checked_resume(resume: Any) -> bool | str:
    """`resume` itself.

    Raises:
        ConfigError: it is none of True, False and "force".

    >>> checked_resume("force")
    'force'
    """
    if resume is True or resume is False or (isinstance(resume, str) and resume == "force"):
        return resume
    raise ConfigError(
        f'resume={shown(resume)}: True (go on with the run in output_dir), False (start anew) or "force" '
        "(go on although the recipe differs) is needed"
    )


def models_of(trainer: Trainer) -> dict[str, str]:
    """What tells the models of a run from others: names, and fingerprints of their weights.

    >>> sorted(models_of(Trainer(clip, teacher)))
    ['clip', 'clip_frozen', 'clip_start', 'teacher', 'teacher_weights']
    """
    trained = trainer.step_modules.parameters
    ids = {id(parameter) for parameter in trained.values()}
    unet = trainer.teacher.unet
    return {
        "clip": f"{type(trainer.clip).__name__} ({trainer.step_modules.tower.name})",
        "clip_start": fingerprint(trained.items()),
        "clip_frozen": fingerprint(
            (name, parameter)
            for name, parameter in trainer.clip.named_parameters()
            if id(parameter) not in ids
        ),
        "teacher": type(unet).__name__,
        "teacher_weights": fingerprint(unet.named_parameters()),
    }


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of the names, the shapes and some values of each tensor, at the cost of one copy to the host.

    >>> fingerprint([("w", torch.zeros(3))]) != fingerprint([("w", torch.ones(3))])
    True
    """
    digest, values = hashlib.sha256(), []
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().reshape(-1)
        values.append(flat[:: max(1, len(flat) // _SAMPLED)].to(torch.float32))
    if values and not any(value.is_meta for value in values):
        digest.update(torch.cat([value.to(values[0].device) for value in values]).cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def _check_steps(folder: RunFolder, earlier: Recipe, recipe: Recipe, done: int) -> None:
    if recipe.steps is not None and recipe.steps < done:
        raise ConfigError(
            f"steps={recipe.steps}, but the run in {folder.path} has done {done} steps already: ask for "
            "more, choose another folder, or give resume=False, which starts anew"
        )


def _check_same(
    folder: RunFolder, earlier: Recipe, recipe: Recipe, was: dict[str, Any], now: dict[str, str]
) -> None:
    differing = earlier.differences(recipe)
    # A learning rate that does not look at the length of the run: more steps are the same run, gone on with.
    if "steps" in differing and (earlier.schedule, recipe.schedule) == ("constant", "constant"):
        del differing["steps"]
    lines = [f"{name} was {before!r}, is {after!r}" for name, (before, after) in differing.items()]
    for name in ("clip", "clip_frozen", "teacher", "teacher_weights"):
        if was.get(name) != now[name]:
            lines.append(f"{name} was {was.get(name)}, is {now[name]}")
    if lines:
        raise ConfigError(
            f"the run in {folder.path} differs from this one ({'; '.join(lines)}): give the same settings to "
            'go on with it, resume="force" to go on with the new ones, resume=False to start anew, or '
            "another output_dir"
        )
