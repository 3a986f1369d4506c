"""What ``diva-rs train`` measures while it trains: from its flags to `post_train`'s arguments."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from diva_rs.cli.models import belongings
from diva_rs.cli.options import TrainOptions
from diva_rs.errors import ConfigError
from diva_rs.recipes.recipe import Recipe


def scoring(
    options: TrainOptions, clip: Any, images: Callable[[], Iterable[Any]], recipe: Recipe
) -> dict[str, Any]:
    """``evaluate``, ``eval_every``, ``best`` and ``guard`` of `post_train`; empty where no score is named.

    ``images`` makes a loader of the training images, for the drift.

    Raises:
        ConfigError: a bound that cannot be read, or a folder without what is to be measured.
    """
    evaluate: dict[str, Callable[[Any], Any]] = {}
    if options.mmvp is not None or options.zero_shot is not None:
        from diva_rs.evaluation import mmvp_vlm, zero_shot_folder

        preprocess, tokenizer = belongings(clip, options.clip)
        mmvp, zero_shot = options.mmvp, options.zero_shot
        if mmvp is not None:
            evaluate["mmvp"] = lambda model: mmvp_vlm(model, preprocess, tokenizer, mmvp)
        if zero_shot is not None:
            evaluate["zero_shot"] = lambda model: zero_shot_folder(model, preprocess, tokenizer, zero_shot)
    if options.drift is not None:
        evaluate["drift"] = _drift(clip, images(), options.drift, recipe)
    others = {"eval_every": options.eval_every, "best": options.best, "guard": bounds(options.guard)}
    given = [name for name, value in others.items() if value is not None]
    if given and not evaluate:
        raise ConfigError(
            f"{options.label(given[0])} needs a score: give --mmvp, --zero-shot or --drift as well"
        )
    return {"evaluate": evaluate, **others} if evaluate else {}


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
    for name in names:
        values = (row.get(name, float("nan")) for row in rows.values())
        lines.append(f"{name:<{width}}" + "".join(f"{value:>10.4g}" for value in values))
    return "\n".join(lines)


def _drift(clip: Any, loader: Iterable[Any], count: int, recipe: Recipe) -> Callable[[Any], float]:
    from diva_rs.clip import adapt
    from diva_rs.data.pixels import clip_input
    from diva_rs.evaluation import Drift

    tower = adapt(clip)
    mean, std = recipe.clip_mean or tower.mean, recipe.clip_std or tower.std
    batches: list[Any] = []
    for batch in loader:
        left = count - sum(map(len, batches))
        batches.append(clip_input(batch["images"][:left], recipe, tower.image_size, mean, std))
        if left <= len(batches[-1]):
            break
    return Drift(clip, batches)
