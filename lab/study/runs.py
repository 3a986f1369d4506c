"""One run of one arm, and the resumable sequence of runs."""

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diva_rs._base.files import read_text, write_json, write_text
from diva_rs.captions import Judgements
from diva_rs.diffusion import Teacher
from diva_rs.errors import ConfigError, DataError, shown
from diva_rs.evaluation.interpolation import interpolate
from diva_rs.recipes.recipe import Recipe
from diva_rs.run.post_training import post_train
from lab.study.arms import Arm
from lab.study.cost import cost
from lab.study.data import TrainingImages
from lab.study.outcomes import changed, intervals
from lab.study.supervised import fine_tune


class Models(Protocol):
    """What an arm needs of a world's models; `lab.world.StudyWorld` is one implementation.

    ``vae`` and ``encode`` are needed for judging alone, `loss_ratio` for the arm with an untrained teacher.
    """

    # The teacher "unet", "dit" or "untrained"; ``seed`` is that of fresh weights.
    def teacher(self, kind: str = "unet", seed: int = 0) -> Teacher: ...

    # The factor that makes the loss of ``teacher`` as large as the trained one's, on latents (N, C, h, w).
    def loss_ratio(self, teacher: Teacher, latents: Tensor) -> float: ...

    # CLIP ``number``: a new copy.
    def clip(self, number: int = 0) -> nn.Module: ...

    # Captions as the teacher reads them: (M, L, C).
    def encode(self, texts: Sequence[str]) -> Tensor: ...


def run_arm(
    arm: Arm,
    clip: nn.Module,
    world: Models,
    images: TrainingImages,
    seed: int,
    steps: int | None = None,
    judged: Judgements | None = None,
) -> dict[str, float]:
    """Treat ``clip`` in place with ``arm``; ``judged`` is needed where captions take part.

    Args:
        steps: in which the tower trains; None: the arm's.

    Returns:
        "loss_first" and "loss_last": means over the first and the last tenth of the logged steps; and the
        costs of `lab.study.cost`. Empty for an arm that does not train.
    """
    if not arm.share:
        return {}
    fields = {**arm.recipe(steps), "seed": seed}
    teacher = None
    if arm.supervised:
        losses = fine_tune(clip, images, fields["steps"], seed)
    else:
        teacher = world.teacher(arm.teacher, seed) if Recipe(**fields).predicts else None
        if teacher is not None and arm.teacher == "untrained":
            weight = world.loss_ratio(teacher, images.latents[:256]) / fields["draws"]
            fields["draw_weights"] = (weight,) * fields["draws"]
        loader = images.loader(fields["batch"], seed, arm.share, arm.mismatched)
        terms, original = None, copy.deepcopy(clip) if arm.interpolate < 1 else None
        mean = Average(clip.visual, arm.average) if arm.average else None
        if arm.captions is not None:
            assert judged is not None
            terms = arm.captions.terms(clip, images, judged, seed)
        hooks = [mean.update] if mean else []
        result = post_train(
            clip, teacher, loader, callbacks=hooks, terms=terms, progress=False, log_every=5, **fields
        )
        if mean:
            mean.write()
        if original is not None:
            interpolate(original, clip, arm.interpolate, into=clip)
        main = "denoising" if fields.get("denoising", 1.0) else "loss"
        losses = [row[main] for row in result.history if main in row]
    tenth = max(1, len(losses) // 10)
    means = {"loss_first": sum(losses[:tenth]) / tenth, "loss_last": sum(losses[-tenth:]) / tenth}
    return means | cost(arm, clip, teacher, images, fields)


class Average:
    """The running mean of a module's weights, without the bias of its start.

    >>> module = nn.Linear(1, 1, bias=False)
    >>> mean = Average(module, 0.5)
    >>> for value in (1.0, 4.0):
    ...     _ = nn.init.constant_(module.weight, value)
    ...     mean.update(0, {})
    >>> mean.write()
    >>> module.weight.item()
    3.0
    """

    def __init__(self, module: Any, kept: float) -> None:
        self.module, self.kept, self.count = module, kept, 0
        self.sums = [torch.zeros_like(parameter) for parameter in module.parameters()]

    @torch.no_grad()
    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the weights, as a callback of `post_train`."""
        self.count += 1
        for total, parameter in zip(self.sums, self.module.parameters(), strict=True):
            total.lerp_(parameter, 1 - self.kept)

    @torch.no_grad()
    def write(self) -> None:
        """Put the mean into the module."""
        for total, parameter in zip(self.sums, self.module.parameters(), strict=True):
            parameter.copy_(total / (1 - self.kept**self.count))


def run_all(
    arms: Mapping[str, Arm],
    seeds: Sequence[int],
    folder: Path,
    clip_of: Callable[[int], nn.Module],
    world: Models,
    measure: Callable[[nn.Module], Mapping[str, float]],
    images: TrainingImages,
    steps: int | None = None,
    judged: Judgements | None = None,
) -> list[dict[str, Any]]:
    """Run every arm on the CLIP of every seed, except for the runs that ``folder`` already has.

    Each run is a row of ``folder/runs.jsonl``: arm, seed, seconds (also of processor time), losses, costs,
    the scores "before" and "after", for each score the interval of its change over the items ("intervals"),
    and which items changed ("changed"). The file is replaced as a
    whole after each run, so it never contains half a row. ``measure`` returns at least "mini_mmvp",
    "zero_shot" and "probe_class".
    """
    place = folder / "runs.jsonl"
    rows = read_rows(place) if place.exists() else []
    done = {(row["arm"], row["seed"]) for row in rows}
    for seed in seeds:
        missing = [name for name in arms if (name, seed) not in done]
        if not missing:
            continue
        original = clip_of(seed)
        before = measure(original)
        for name in missing:
            clip = copy.deepcopy(original)
            started, busy = time.perf_counter(), time.process_time()
            losses = run_arm(arms[name], clip, world, images, seed, steps, judged)
            seconds, busy = time.perf_counter() - started, time.process_time() - busy
            after = measure(clip)
            row = {"arm": name, "seed": seed, "seconds": seconds, "cpu_seconds": busy, **losses}
            row |= {"before": before, "after": after, "intervals": intervals(before, after)}
            rows.append({**row, "changed": changed(before, after)})
            write_text(place, "".join(json.dumps(row) + "\n" for row in rows))
            gains = ", ".join(
                f"{key} {before[key]:.1f} -> {after[key]:.1f}"
                for key in ("mini_mmvp", "zero_shot", "probe_class")
            )
            print(f"{name}, seed {seed}: {gains}  ({seconds:.0f} s)", flush=True)
    return [row for row in rows if row["arm"] in arms and row["seed"] in set(seeds)]


def keep_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the common settings of the runs of ``folder``; other settings there are a ConfigError."""
    place = folder / "settings.json"
    if not place.exists():
        write_json(place, settings)
        return
    try:
        was = dict(json.loads(read_text(place)))
    except (ValueError, TypeError):
        raise DataError(f"{place} is damaged: use another folder") from None
    # Through JSON, which turns tuples into lists.
    for name, value in json.loads(json.dumps(settings)).items():
        if was.get(name) != value:
            raise ConfigError(
                f"{folder} holds runs with {name}={shown(was.get(name))}, now {name}={shown(value)}: "
                "use another folder"
            )


def read_rows(place: Path) -> list[dict[str, Any]]:
    """The rows of a ``runs.jsonl``; a damaged line is a DataError that names it."""
    rows = []
    for number, line in enumerate(read_text(place).splitlines(), 1):
        try:
            row = json.loads(line)
            row["arm"], row["seed"], row["before"]["mini_mmvp"], row["after"]["mini_mmvp"]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{place}, line {number}: not a run; remove the file to restart") from None
        rows.append(row)
    return rows
