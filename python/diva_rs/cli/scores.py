"""What ``diva-rs train`` measures while it trains: from its flags to `post_train`'s arguments."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from diva_rs.cli.models import belongings, load_images
from diva_rs.cli.options import TrainOptions
from diva_rs.cli.tables import NOT_MEASURED
from diva_rs.clip import adapt
from diva_rs.data import Views, clip_input
from diva_rs.errors import ConfigError
from diva_rs.evaluation import Drift, mmvp_vlm, pairs, zero_shot_folder
from diva_rs.recipes.recipe import Recipe


def scoring(options: TrainOptions, clip: Any, teacher: Any, recipe: Recipe) -> dict[str, Any]:
    """``evaluate``, ``eval_every``, ``best`` and ``guard`` of `post_train`; empty where no score is named."""
    evaluate: dict[str, Callable[[Any], Any]] = {}
    validation = partial(pairs, half="validation")
    measures: dict[str, Any] = {"mmvp": mmvp_vlm, "pairs": validation, "zero_shot": zero_shot_folder}
    for name, measure in measures.items():
        root = getattr(options, name)
        if root is not None:
            preprocess, tokenizer = belongings(clip, options.clip)
            evaluate[name] = partial(measure, preprocess=preprocess, tokenizer=tokenizer, root=root)
    if options.drift is not None:
        evaluate["drift"] = _drift(options, clip, teacher, recipe, options.drift)
    others = {"eval_every": options.eval_every, "best": options.best, "guard": bounds(options.guard)}
    given = [name for name, value in others.items() if value is not None]
    if given and not evaluate:
        raise ConfigError(
            f"{options.label(given[0])} needs a score: give --pairs, --mmvp, --zero-shot or --drift as well"
        )
    others["best_on_test"] = options.best_on_test
    return {"evaluate": evaluate, **others} if evaluate else {}


def bounds(text: str | None) -> dict[str, tuple[str, float]] | None:
    """The guard of "drift=0.95,zero_shot=drop:1".

    >>> bounds("drift=0.95, zero_shot=drop:1")
    {'drift': ('min', 0.95), 'zero_shot': ('drop', 1.0)}
    """
    if text is None:
        return None
    found = {}
    for part in text.split(","):
        name, _, bound = part.partition("=")
        kind, _, value = bound.rpartition(":")
        try:
            found[name.strip()] = kind.strip() or "min", float(value)
        except ValueError as err:
            raise ConfigError(
                f"--guard {text}: {part.strip()!r} cannot be read: SCORE=LOWEST, SCORE=drop:POINTS or "
                "SCORE=max:HIGHEST is needed, several with commas between them"
            ) from err
    return found


def scores_table(found: Mapping[str, Any]) -> str:
    """The scores before and after, and those of the weights kept in ``best``, by step.

    >>> print(scores_table({"before": {"step": 0, "mmvp": 20.0}, "after": {"step": 50, "mmvp": 24.5}}))
    score     before   step 50
    mmvp          20      24.5
    """
    rows = {"before": found["before"]}
    if "best" in found:
        rows[f"best, {found['best']['step']}"] = found["best"]
    rows[f"step {found['after']['step']}"] = found["after"]
    names = [name for name in found["after"] if name != "step"]
    width = max(map(len, ["score", *names]))
    lines = [f"{'score':<{width}}" + "".join(f"{title:>10}" for title in rows)]
    for name in names:
        values = (row.get(name, float("nan")) for row in rows.values())
        lines.append(f"{name:<{width}}" + "".join(f"{value:>10.4g}" for value in values))
    kinds = {entry["kind"] for entries in found.get("of", {}).values() for entry in entries}
    if "detail" in kinds and "retention" not in kinds:
        lines.append(f"{NOT_MEASURED} (--zero-shot FOLDER)")
    if "chosen_on_test" in found:
        lines.append(f"best was chosen by {found['chosen_on_test']}, a test set: its score there is too good")
    return "\n".join(lines)


def _drift(options: TrainOptions, clip: Any, teacher: Any, recipe: Recipe, count: int) -> Drift:
    """The drift on the first ``count`` training images."""
    tower = adapt(clip)
    scale = recipe.clip_mean or tower.mean, recipe.clip_std or tower.std
    pixels: list[torch.Tensor] = []
    for batch in load_images(options, recipe, teacher, Views(), shuffle=False):
        pixels += clip_input(batch["images"], recipe, tower.image_size, *scale)
        if len(pixels) >= count:
            break
    return Drift(clip, torch.stack(pixels[:count]))
