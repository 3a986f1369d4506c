"""What ``diva-rs train`` measures while it trains: from its flags to `post_train`'s arguments."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from diva_rs.cli.scored import belongings
from diva_rs.errors import ConfigError
from diva_rs.recipes.recipe import Recipe


def watching(
    values: Mapping[str, Any], clip: Any, images: Callable[[], Iterable[Any]], recipe: Recipe
) -> dict[str, Any]:
    """``evaluate``, ``eval_every``, ``best`` and ``guard``; empty where nothing is asked for.

    Args:
        values: the command's settings.
        clip: the model before training.
        images: makes a loader of the training images, for the drift.
        recipe: how its pixels become CLIP's.

    Raises:
        ConfigError: a bound that cannot be read, or a folder without what is to be measured.
    """
    evaluate: dict[str, Callable[[Any], Any]] = {}
    if values["mmvp"] is not None or values["zero_shot"] is not None:
        from diva_rs.evaluation import mmvp_vlm, zero_shot_folder

        preprocess, tokenizer = belongings(clip, values["clip"])
        if values["mmvp"] is not None:
            evaluate["mmvp"] = lambda model: mmvp_vlm(model, preprocess, tokenizer, values["mmvp"])
        if values["zero_shot"] is not None:
            evaluate["zero_shot"] = lambda model: zero_shot_folder(
                model, preprocess, tokenizer, values["zero_shot"]
            )
    if values["drift"] is not None:
        evaluate["drift"] = _drift(clip, images(), values["drift"], recipe)
    asked = {"eval_every": values["eval_every"], "best": values["best"], "guard": bounds(values["guard"])}
    if not evaluate and any(value is not None for value in asked.values()):
        name = next(name for name, value in asked.items() if value is not None)
        raise ConfigError(
            f"--{name.replace('_', '-')} has nothing to go by: give --mmvp, --zero-shot or --drift as well"
        )
    return {"evaluate": evaluate, **asked} if evaluate else {}


def bounds(text: str | None) -> dict[str, tuple[str, float]] | None:
    """The guard of "drift=0.95,zero_shot=drop:1".

    Raises:
        ConfigError: it cannot be read.

    >>> bounds("drift=0.95, zero_shot=drop:1")
    {'drift': ('min', 0.95), 'zero_shot': ('drop', 1.0)}
    """
    if text is None:
        return None
    found = {}
    for part in text.split(","):
        name, _, bound = part.partition("=")
        kind, colon, value = bound.partition(":")
        try:
            found[name.strip()] = (kind.strip(), float(value)) if colon else ("min", float(bound))
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
    lines += [
        f"{name:<{width}}" + "".join(f"{row.get(name, float('nan')):>10.4g}" for row in rows.values())
        for name in names
    ]
    return "\n".join(lines)


def _drift(clip: Any, loader: Iterable[Any], count: int, recipe: Recipe) -> Callable[[Any], float]:
    from diva_rs.clip import adapt
    from diva_rs.data.pixels import clip_input
    from diva_rs.evaluation import Drift

    tower = adapt(clip)
    mean, std = recipe.clip_mean or tower.mean, recipe.clip_std or tower.std
    batches, left = [], count
    for batch in loader:
        batches.append(clip_input(batch["images"][:left], recipe, tower.image_size, mean, std))
        left -= len(batches[-1])
        if left <= 0:
            break
    return Drift(clip, batches)
