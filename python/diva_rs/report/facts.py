"""What the page says about the run itself: the course of its losses and scores, and its recipe."""

import math
from typing import Any

from diva_rs.recipes.presets import presets
from diva_rs.recipes.recipe import Recipe
from diva_rs.report.charts import Chart, over_steps
from diva_rs.report.run import Run, number
from diva_rs.report.words import figure

LABELS = {
    "denoising": "Denoising loss",
    "contrast": "Contrast",
    "anchor": "Anchor penalty",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "samples_per_second": "Images per second",
}
Row = tuple[str, ...]


def ends(values: list[float]) -> tuple[int, float, float]:
    """How many values a fifth are, and the means of the first fifth and of the last."""
    part = len(values) // 5 or 1
    return part, sum(values[:part]) / part, sum(values[-part:]) / part


def course(run: Run) -> str:
    """The losses in a sentence or two."""
    names = run.losses
    now = [name for name in names if name in run.history[-1]]  # stages may have other losses
    same = [log for log in run.history if [name for name in names if name in log] == now]
    losses = [log.get("loss", math.nan) for log in same]
    finite, logs = list(filter(math.isfinite, losses)), len(losses)
    gaps = logs - len(finite)
    part, early, late = ends(finite)
    if len(finite) < 2:
        text = f"The only loss logged is {figure(early)}."
    elif part < 2:
        text = f"The first loss logged is {figure(early)}, the last {figure(late)}."
    else:
        text = f"Average of the first {part} of {len(finite)} losses logged: {figure(early)}; "
        text += f"of the last {part}: {figure(late)}."
    if logs < len(run.history):
        text += f" These are the {logs} logs of the last objective, {' + '.join(now)}."
    return f"{text} {gaps} of {logs} logs {'is' if gaps == 1 else 'are'} not finite." if gaps else text


def training(run: Run) -> tuple[Chart, list[Chart], list[Row]]:
    """A chart of the loss, of each of its terms, the learning rate and the gradient norm; their numbers."""
    single = run.losses == ["denoising"]
    names = [*([] if single else run.losses), "lr", "grad_norm"]
    what = LABELS["denoising"] if single else f"Loss ({' + '.join(run.losses)})" if run.losses else "Loss"
    width = len(run.history) // 10
    alt = f"{what} over the steps. {course(run)}"
    loss = over_steps(run.column("loss"), what, alt, width if width > 1 else 0, run.stages)
    charts = [logged(run, name) for name in names if run.finite(name)]
    rows = []
    for name in ["loss", *names]:
        values, finite = [log[name] for log in run.history if name in log], run.finite(name)
        if finite:
            rows.append((name, *map(figure, (values[0], values[-1], min(finite), max(finite)))))
    return loss, charts, rows


def logged(run: Run, name: str, from_zero: bool = False) -> Chart:
    """A logged number over the steps."""
    label, finite = LABELS.get(name, name), run.finite(name)
    alt = f"{label} over the steps: {figure(finite[0])} at the first log, {figure(finite[-1])} at the last."
    return over_steps(run.column(name), label, alt, from_zero=from_zero)


def measured(run: Run) -> list[Chart]:
    """The scores measured while training, from the one before the first step on."""
    before = run.evaluation.get("before", {})
    charts = []
    for score in run.scores:
        first = (number(before.get("step", 0)), number(before.get(score)))
        points = [first, *zip(*run.column(score), strict=True)]
        points = [point for point in points if all(map(math.isfinite, point))]
        if len(points) > 1:
            steps, values = map(list, zip(*points, strict=True))
            at = f"{figure(values[0])} at step {figure(steps[0])}, {figure(values[-1])} at the last"
            charts.append(over_steps((steps, values), score, f"{score} over the steps: {at}."))
    return charts


def recipe_fields(recipe: Recipe) -> tuple[list[Row], list[Row]]:
    """(field, value, source) of the fields that a source or the caller decided, and (field, value, meaning)
    of all others.

    >>> recipe_fields(Recipe.named("diva-openai-vit-l-14-224"))[0][1]
    ('density', '0.15', 'paper: about 15 % of the local tokens at 224')
    """
    preset = presets().get(recipe.name)
    published = preset.fields() if preset else {}
    decided: list[Row] = []
    others: list[Row] = []
    for name, field in Recipe.model_fields.items():
        value = getattr(recipe, name)
        if name == "name":
            continue
        if preset and value == published.get(name, ...):
            decided.append((name, _value(value), preset.source_of(name)))
        elif name in published:
            changed = f"set for this run; the preset has {_value(published[name])}"
            decided.append((name, _value(value), changed))
        elif value != field.default:
            decided.append((name, _value(value), f"set for this run; the default is {_value(field.default)}"))
        else:
            others.append((name, _value(value), str(field.description)))
    return decided, others


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return repr(value) if value == "" else str(value)
