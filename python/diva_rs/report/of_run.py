"""The sections about the run itself: what was trained on what, how it went, how fast, and where."""

import math
from collections.abc import Mapping
from typing import Any

from diva_rs.report.blocks import Block, Columns, Figure, Key, Section, Table, Text
from diva_rs.report.curves import Curve, curves
from diva_rs.report.run import Run, number
from diva_rs.report.words import NOT_RECORDED, count, duration, figure

_NAMES = {
    "device": "Device",
    "gpu": "GPU",
    "diva_rs": "diva-rs",
    "torch": "PyTorch",
    "python": "Python",
    "platform": "System",
    "cpus": "CPU cores",
    "threads": "Threads of PyTorch",
}
_ELSEWHERE = {
    *("clip", "teacher", "data", "trained_parameters", "steps", "samples", "seconds", "interrupted"),
    *("backend", "peak_memory_bytes", "evaluation", "stopped"),
}


def lead(run: Run) -> str:
    """One sentence: what this run was."""
    clip, data = (str(run.report.get(name, "")) for name in ("clip", "data"))
    teacher = _teacher(run.report.get("teacher"))
    parts = [f"{clip or 'A CLIP'}, post-trained with generative feedback (DIVA, arXiv 2407.20171)"]
    if teacher:
        parts.append(f"from {teacher[0][1].split(',')[0]}")
    if data:
        parts.append(f"on {data}")
    return f"{' '.join(parts)}; recipe {run.recipe.name}."


def run_keys(run: Run) -> list[Key]:
    """The run's own figures for the head of the report."""
    steps = run.report.get("steps", int(run.history[-1]["step"]) if run.history else 0)
    details = [f"{figure(run.report['samples'])} images"] if "samples" in run.report else []
    if state := _state(run):
        details.append(state)
    keys = [Key("Optimizer steps", figure(steps), ", ".join(details))]
    values = _finite(run.column("denoising")[1])
    if len(values) > 1:
        early, late = _ends(values)
        logs = len(values) // 5 or 1
        where = (
            ("at the last log", "at the first")
            if logs == 1
            else (f"last {logs} logs", f"in the first {logs}")
        )
        keys.append(Key("Denoising loss", figure(late), f"{where[0]}; {figure(early)} {where[1]}"))
    return keys


def trained_section(run: Run) -> Section:
    """What was trained on what."""
    report = run.report
    trained = report.get("trained_parameters")
    rows = [("CLIP", _words(report.get("clip")))]
    if isinstance(trained, Mapping):
        rows += [(f"Trained parameters, {name}", _words(size)) for name, size in trained.items()]
    rows += [(f"Teacher, {name}", value) for name, value in _teacher(report.get("teacher"))]
    rows.append(("Images", _words(report.get("data"))))
    state = f" ({state})" if (state := _state(run)) else ""
    rows.append(("Optimizer steps", f"{figure(report.get('steps'))} of {figure(run.recipe.steps)}{state}"))
    rows.append(("Images seen", figure(report.get("samples"))))
    epochs = _finite(run.column("epoch")[1])
    rows.append(("Passes over the images", f"{int(max(epochs)) + 1} begun" if epochs else NOT_RECORDED))
    rows += _origin(run)
    table = Table("Models, images and length of the run", ("What", "Value"), tuple(rows))
    return Section("What was trained on what", "trained", (*(Text(note) for note in run.notes), table))


def training_section(run: Run) -> Section:
    """The loss curve and what it says."""
    steps, losses = run.column("loss")
    finite = _finite(losses)
    if not finite:
        return Section("Training", "training", (Text("The run has logged no finite loss."),))
    anchored = bool(run.recipe.anchor)
    warmup = run.recipe.projector_warmup or None
    width = len(steps) // 10
    style = "raw" if width > 1 else "smooth"
    lines, legend = [Curve(style, steps, losses)], [(f"line {style}", "as logged")]
    if width > 1:
        lines.append(Curve("smooth", steps, running_mean(losses, width)))
        legend.append(("line smooth", f"mean of {width} neighbouring logs"))
    if warmup is not None:
        legend.append(("mark", "CLIP starts to train"))
    name = "loss (denoising and anchor)" if anchored else "denoising loss"
    alt = f"The {name} over the steps. {_course(losses)}"
    svg = curves(lines, "step", name, alt, mark=warmup)
    caption = f"The {name} over the optimizer steps. The vertical axis does not begin at 0."
    others = [("denoising", "denoising loss"), ("anchor", "anchor penalty")] if anchored else []
    others += [("lr", "learning rate"), ("grad_norm", "gradient norm")]
    charts = [chart for name, label in others if (chart := _small(run, name, label)) is not None]
    blocks: list[Block] = [
        Text(_course(losses)),
        Figure(svg, alt, caption, tuple(legend)),
        Text(
            "The loss depends on the timesteps and the noise that a step drew, so single logs scatter. It "
            "measures how well the teacher denoises under CLIP's condition, not whether CLIP sees better.",
            note=True,
        ),
        Columns(tuple(charts)),
        _logged(run, ["loss", *(name for name, _ in others)]),
    ]
    return Section("Training", "training", tuple(blocks))


def throughput_section(run: Run) -> Section:
    """How fast it went, and with how much memory."""
    report = run.report
    seconds, samples, steps = (_positive(report.get(name)) for name in ("seconds", "samples", "steps"))
    memory = _positive(report.get("peak_memory_bytes"))
    where = (
        "allocated on the device" if str(report.get("device")).startswith("cuda") else "of the whole process"
    )
    rows = [
        ("Duration", NOT_RECORDED if seconds is None else duration(seconds)),
        ("Images per second", figure(samples / seconds if samples and seconds else None)),
        ("Steps per second", figure(steps / seconds if steps and seconds else None)),
        (f"Peak memory, {where}", NOT_RECORDED if memory is None else f"{memory / 2**30:.2f} GiB"),
    ]
    backend = report.get("backend")
    if isinstance(backend, Mapping):
        rows += [(f"Backend of the {part}", str(how)) for part, how in backend.items()]
    blocks: list[Block] = [Table("Speed, reading of images included", ("What", "Value"), tuple(rows))]
    chart = _small(run, "samples_per_second", "images per second", from_zero=True, size=(640, 240))
    return Section("Throughput", "throughput", (*blocks, chart) if chart else tuple(blocks))


def environment_section(run: Run) -> Section:
    """Versions and machine, and whatever else the report holds."""
    rows = []
    for name, value in run.report.items():
        if isinstance(value, Mapping) and name not in _ELSEWHERE:
            rows += [(str(key), _words(entry)) for key, entry in value.items()]
        elif name not in _ELSEWHERE:
            rows.append((_NAMES.get(name, name), _words(value)))
    if not rows:
        text = "The environment is not recorded: it is written when a run comes to its end."
        return Section("Environment", "environment", (Text(text),))
    return Section(
        "Environment", "environment", (Table("Versions and machine", ("What", "Value"), tuple(rows)),)
    )


def running_mean(values: list[float], width: int) -> list[float]:
    """Mean of each value and its neighbours, ``width`` of them (fewer at the ends), finite ones only.

    >>> running_mean([1.0, 2.0, math.nan, 6.0], 3)
    [1.5, 1.5, 4.0, 6.0]
    """
    means = []
    for n in range(len(values)):
        near = _finite(values[max(0, n - width // 2) : n + (width + 1) // 2])
        means.append(sum(near) / len(near) if near else math.nan)
    return means


def _origin(run: Run) -> list[tuple[str, str]]:
    """What tells this run's models and starts from others'."""
    names = (("clip_start", "Fingerprint of CLIP before"), ("teacher_weights", "Fingerprint of the teacher"))
    rows = [(label, str(run.origin[name])) for name, label in names if run.origin.get(name) is not None]
    starts = run.origin.get("starts")
    later = starts[1:] if isinstance(starts, list) else []
    steps = [figure(start["step"]) for start in later if isinstance(start, Mapping) and "step" in start]
    return [*rows, ("Interrupted and gone on with at step", ", ".join(steps))] if steps else rows


def _teacher(description: Any) -> list[tuple[str, str]]:
    """(part, what it is) of `Teacher.describe`'s lines."""
    if not isinstance(description, str):
        return []
    parts = [line.partition(": ") for line in description.splitlines()]
    return [(name, value) if colon else ("", name) for name, colon, value in parts]


def _state(run: Run) -> str:
    if run.report.get("interrupted"):
        return "interrupted by Ctrl-C"
    if run.report.get("stopped"):
        return "stopped by the guard"
    return "" if run.report else "no end recorded"


def _small(
    run: Run, name: str, label: str, from_zero: bool = False, size: tuple[int, int] = (400, 220)
) -> Figure | None:
    steps, values = run.column(name)
    finite = _finite(values)
    if not finite:
        return None
    alt = (
        f"The {label} over the steps: {figure(finite[0])} at the first log, {figure(finite[-1])} at the last."
    )
    svg = curves([Curve("smooth", steps, values)], "step", label, alt, size, from_zero)
    return Figure(svg, alt, f"{label[:1].upper()}{label[1:]} over the optimizer steps.")


def _logged(run: Run, names: list[str]) -> Table:
    rows = []
    for name in names:
        values = run.column(name)[1]
        if finite := _finite(values):
            rows.append((name, *map(figure, (values[0], values[-1], min(finite), max(finite)))))
    header = ("Logged", "First", "Last", "Least", "Greatest")
    caption = f"The numbers of {count(len(run.history), 'log')}"
    return Table(caption, header, tuple(rows), frozenset({1, 2, 3, 4}), frozenset({0}))


def _course(losses: list[float]) -> str:
    finite = _finite(losses)
    gaps = len(losses) - len(finite)
    lost = f" {gaps} of {len(losses)} logs {'is' if gaps == 1 else 'are'} not finite." if gaps else ""
    if len(finite) < 2:
        return f"The only loss logged is {figure(finite[0])}.{lost}"
    early, late = map(figure, _ends(finite))
    if (logs := len(finite) // 5) < 2:
        return f"The first loss logged is {early}, the last {late}.{lost}"
    means = (
        f"Average of the first {logs} of {len(finite)} losses logged: {early}; of the last {logs}: {late}."
    )
    return means + lost


def _ends(values: list[float]) -> tuple[float, float]:
    """Means of the first and of the last fifth."""
    part = len(values) // 5 or 1
    return sum(values[:part]) / part, sum(values[-part:]) / part


def _finite(values: list[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _positive(value: Any) -> float | None:
    found = number(value)
    return found if math.isfinite(found) and found > 0 else None


def _words(value: Any) -> str:
    return figure(value) if isinstance(value, (int, float)) or value is None else str(value)
