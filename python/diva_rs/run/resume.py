"""Whether a call may resume the run in its folder; checked before anything is changed."""

import logging
import os
from dataclasses import asdict, replace
from typing import Any

from torch import nn

from diva_rs._base.tensors import fingerprint
from diva_rs.clip.facts import differences, facts
from diva_rs.errors import ConfigError, WeightsError
from diva_rs.recipes.recipe import Recipe
from diva_rs.run.folder import RunFolder
from diva_rs.run.identity import identity_of
from diva_rs.run.loader import Progress, ResumableLoader
from diva_rs.run.provenance import environment, name_of, trained_ids
from diva_rs.run.ranks.loaders import places_on
from diva_rs.run.ranks.trainer import RankedTrainer
from diva_rs.step.trainer import Trainer

_log = logging.getLogger("diva_rs")


def open_run(
    folder: RunFolder, ranked: RankedTrainer, loader: ResumableLoader, resume: bool | str, one_pass: bool
) -> dict[str, Any] | None:
    """The state to resume from, or None for a run that begins. ``resume`` is post_train's.

    Raises ConfigError where the run in the folder has another recipe, other models, another loader
    or more steps, WeightsError where all of its checkpoints are damaged.
    """
    trainer = ranked.trainer
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if restarted and (folder.facts() or {}).get("launch") == os.environ.get("TORCHELASTIC_RUN_ID"):
        resume = resume or True  # torchrun has begun this run before, and starts its ranks again
    models, recipe = _models_of(trainer), trainer.recipe
    data = identity_of(loader.loader)
    size = getattr(loader.loader, "batch_size", None)
    if recipe.batch is None and size is not None:  # a step is then one batch of each rank
        data["batch"] = size
    here = {**models, "data": data, "environment": environment(trainer.step_modules.device)}
    if resume is False:
        folder.clear()
    earlier, was = folder.recipe(), folder.facts() or {}
    if earlier is None and folder.steps():
        raise ConfigError(f"{folder.path} holds checkpoints, but no run.json: resume=False replaces them")
    state = None if earlier is None else folder.restore()
    if earlier is None or state is None:
        folder.clear()  # a run that ended before its first checkpoint leaves its log
        folder.begin(recipe, here, 0)
        return None
    progress = progress_of(state)
    if recipe.steps is not None and recipe.steps < progress.steps:
        done = f"the run in {folder.path} has done {progress.steps} steps already"
        raise ConfigError(f"steps={recipe.steps}, but {done}: give more, or resume=False to start again")
    world = ranked.ranks.world
    places = places_on(loader.loader, progress.places, world)
    changes = [] if resume == "force" else _changes(earlier, recipe, was, models, one_pass)
    changes += [f"the loader's {line}" for line in _differing(was.get("data"), data)]
    if places is None:
        changes.append(f"the number of ranks was {len(progress.places)} in the middle of a pass, is {world}")
    if changes and resume != "force":
        raise ConfigError(
            f"the run in {folder.path} differs from this one ({'; '.join(changes)}): give the same "
            'settings, resume="force" to continue with the new ones, or resume=False to start again'
        )
    needing = trainer.step_modules.needing_original
    if needing and was.get("clip_start") != models["clip_start"]:
        raise ConfigError(
            f"{needing[0]} needs the CLIP that the run in {folder.path} began from, and "
            "this one has other weights (training changes it in place): load the model again"
        )
    if changes and progress.places:
        _log.warning("%s: the pass over the data begins again", "; ".join(changes))
        places, progress = (), replace(progress, seen=0)
    if places != progress.places:
        progress = replace(progress, places=places or (), prints=())
    state["run"]["progress"] = asdict(progress)
    folder.begin(recipe, {**here, "clip_start": was.get("clip_start")}, progress.steps)
    return state


def progress_of(state: dict[str, Any]) -> Progress:
    """The progress in a checkpoint's state."""
    try:
        progress = Progress(**state["run"]["progress"])
        places = tuple(tuple(map(int, place)) for place in progress.places)
        return replace(progress, places=places, prints=tuple(map(int, progress.prints)))
    except (KeyError, TypeError, ValueError) as err:
        raise WeightsError("the checkpoint names no place in its run: resume=False starts again") from err


def _models_of(trainer: Trainer) -> dict[str, Any]:
    """Names and fingerprints of the models of a run, the names of its losses, and the caller's terms."""
    tower, clip = trainer.step_modules.parameters, trainer.clip
    trained = trained_ids(trainer) | {id(parameter) for parameter in tower.values()}
    terms = trainer.step_modules.terms_identity.items()
    unet = None if trainer.teacher is None else trainer.teacher.unet

    def frozen(module: nn.Module) -> str:
        return fingerprint(item for item in module.named_parameters() if id(item[1]) not in trained)

    return {
        "clip": name_of(trainer),
        "clip_computes": facts(clip),
        "clip_start": fingerprint(tower.items()),
        "clip_frozen": frozen(clip),
        "teacher": None if unet is None else type(unet).__name__,
        "teacher_weights": None if unet is None else frozen(unet),
        "losses": ", ".join(trainer.step_modules.all_loss_names),
        **{f"term {name}": text for name, text in terms},
    }


def _changes(
    earlier: Recipe, recipe: Recipe, was: dict[str, Any], now: dict[str, Any], one_pass: bool
) -> list[str]:
    """What differs in recipe and models between the run in the folder and this one, but its start."""
    fields = earlier.differences(recipe)
    # A constant learning rate does not depend on the length: more steps continue the same run. Fewer
    # of one pass are those of a loader with larger batches: its end would come too early.
    shorter = one_pass and recipe.steps is not None and recipe.steps < (earlier.steps or 0)
    if (earlier.schedule, recipe.schedule) == ("constant", "constant") and not shorter:
        fields.pop("steps", None)
    changes = [f"{name} was {before!r}, is {after!r}" for name, (before, after) in fields.items()]
    models = {name: now[name] for name in now if name not in ("clip_start", "clip_computes")}
    changes += _differing({name: was.get(name) for name in models}, models)
    computed = differences(was.get("clip_computes") or {}, now["clip_computes"], ("vision", "text", "pixels"))
    return changes + [f"clip's {line}" for line in computed]


def _differing(was: dict[str, Any] | None, now: dict[str, Any]) -> list[str]:
    """A line for each entry that differs; none where one of the two is unknown."""
    names = {**was, **now} if was and now else {}
    pairs = {name: ((was or {}).get(name), now.get(name)) for name in names}
    return [f"{name} was {before}, is {after}" for name, (before, after) in pairs.items() if before != after]
