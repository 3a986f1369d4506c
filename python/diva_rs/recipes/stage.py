"""Stage: which parts of a run train, for how long and how; and the plan of a run's stages."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, model_validator
from typing_extensions import Self

from diva_rs.errors import ConfigError, shown
from diva_rs.recipes.settings import Count, Decay, Optimizer, Schedule, Settings, Whole

WEIGHTS = ("denoising", "contrast", "anchor")  # of the terms that a recipe has by itself
_NAME = re.compile(r"[a-z]\w*(:\S+)?")


class Group(Settings):
    """Parameters that train with settings of their own; a setting that is None is the stage's.

    >>> Group(name="projector", lr=1e-3).lr
    0.001
    """

    name: str
    """"projector", "tower", "tower:<glob over keys>" or "denoiser\""""
    lr: NonNegativeFloat | None = None
    weight_decay: NonNegativeFloat | None = None
    schedule: Schedule | None = None
    warmup: Whole | None = None


class Stage(Settings):
    """One stage of a run; a setting that is None is the recipe's.

    ``train`` names groups of parameters: "projector", "tower", "tower:<glob over its keys>", "denoiser". An
    entry may be a `Group` (or a dict of its fields), which has its own learning rate, weight decay and
    schedule. Where several groups match a parameter, the last one counts.

    >>> Stage(train=("projector", "tower"), steps=100, optimizer="adamw", lr=1e-4).names
    ('projector', 'tower')
    """

    train: Annotated[tuple[str | Group, ...], Field(min_length=1)]
    """groups that train"""
    steps: Count | None = None
    """optimizer steps; None: the rest of the run"""
    continues: bool = False
    """whether optimizer and schedule of the stage before are kept, with their state"""
    optimizer: Optimizer | None = None
    lr: NonNegativeFloat | None = None
    projector_lr: NonNegativeFloat | None = None
    denoiser_lr: NonNegativeFloat | None = None
    weight_decay: NonNegativeFloat | None = None
    momentum: Decay | None = None
    betas: tuple[Decay, Decay] | None = None
    eps: NonNegativeFloat | None = None
    schedule: Schedule | None = None
    warmup: Whole | None = None
    grad_clip: NonNegativeFloat | None = None
    """greatest norm of the gradient; 0: no clipping"""
    denoising: NonNegativeFloat | None = None
    """weight of the denoising loss in this stage"""
    contrast: NonNegativeFloat | None = None
    """weight of the contrast in this stage"""
    anchor: NonNegativeFloat | None = None
    """weight of the anchor in this stage"""

    @property
    def names(self) -> tuple[str, ...]:
        """The groups' names."""
        return tuple(group if isinstance(group, str) else group.name for group in self.train)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in self.names:
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    f"train={shown(name)}: a group's name is needed, such as 'projector', 'tower', "
                    "'tower:*attn*' or 'denoiser'"
                )
            if self.names.count(name) > 1:
                raise ConfigError(f"train names the group {name!r} twice: name it once")
        for name in ("optimizer", "schedule", "warmup"):
            if self.continues and getattr(self, name) is not None:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} does not go with continues=True, which keeps the "
                    "optimizer and the schedule of the stage before: leave one of them out"
                )
        return self


@dataclass(frozen=True)
class PlannedGroup:
    """A group of a `PlannedStage`."""

    name: str
    lr: float
    weight_decay: float
    schedule: str
    warmup: int


@dataclass(frozen=True)
class PlannedStage:
    """A stage of a run, with every setting filled in."""

    groups: tuple[PlannedGroup, ...]  # what trains
    first: int  # optimizer steps of the run before this stage
    steps: int | None  # optimizer steps of this stage; None: until the data ends
    continues: bool  # whether it keeps the optimizer of the stage before
    schedule_first: int  # where the learning rate's schedule begins
    schedule_steps: int | None  # its steps; None, with a constant rate, where the end is not known
    optimizer: str
    momentum: float
    betas: tuple[float, float]
    eps: float
    grad_clip: float | None  # None: no clipping
    weights: Mapping[str, float]  # of the terms that a recipe has by itself


def plan(stages: Sequence[Stage], recipe: Mapping[str, Any], steps: int | None) -> Iterator[PlannedStage]:
    """The stages of a run of ``steps`` optimizer steps; ``recipe`` holds what a stage leaves out."""
    counts = [stage.steps for stage in stages]
    if counts[-1] is None and steps is not None:
        counts[-1] = steps - sum(count or 0 for count in counts[:-1])
    first = 0
    values: dict[str, Any] = {}
    for index, (stage, count) in enumerate(zip(stages, counts, strict=True)):
        given = {name: value for name, value in stage if value is not None}
        values = {**(values if stage.continues else recipe), **given}
        if not stage.continues:
            end = next((i for i in range(index + 1, len(stages)) if not stages[i].continues), len(stages))
            span = counts[index:end]
            start, length = first, None if None in span else sum(c for c in span if c is not None)
        yield PlannedStage(
            groups=tuple(_group(group, values, length) for group in stage.train),
            first=first,
            steps=count,
            continues=stage.continues,
            schedule_first=start,
            schedule_steps=length,
            grad_clip=values["grad_clip"] or None,
            weights={name: values[name] for name in WEIGHTS},
            **{name: values[name] for name in ("optimizer", "momentum", "betas", "eps")},
        )
        first += count or 0


def _group(group: str | Group, stage: Mapping[str, Any], length: int | None) -> PlannedGroup:
    own = {"name": group} if isinstance(group, str) else dict(group)
    lr = stage.get(f"{own['name']}_lr")
    values = {**stage, "lr": stage["lr"] if lr is None else lr}
    values |= {name: value for name, value in own.items() if value is not None}
    if length is None:
        values["schedule"] = "constant"
    return PlannedGroup(**{field.name: values[field.name] for field in fields(PlannedGroup)})
