"""Stages of a run: which groups of parameters train, with which optimizer and learning rates."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase

from torch import Tensor, nn

import diva_rs._native as _native
from diva_rs.clip.lora import LowRank
from diva_rs.errors import ConfigError
from diva_rs.recipes.recipe import Recipe
from diva_rs.recipes.stage import PlannedGroup, PlannedStage

Parameters = Mapping[str, nn.Parameter]


def match(name: str, parts: Mapping[str, Parameters]) -> dict[str, nn.Parameter]:
    """The parameters of a group: "tower" is the whole part, "tower:<glob>" those whose key matches; of a
    low-rank tower, those whose matrix's key matches too.

    >>> parts = {"tower": {"blocks.0.weight": nn.Parameter(torch.ones(1))}}
    >>> list(match("tower:blocks.*", parts))
    ['blocks.0.weight']
    """
    part, _, glob = name.partition(":")
    if part not in parts:
        raise ConfigError(f"train names the group {name!r}: there are {', '.join(parts)}")
    found = {
        key: value
        for key, value in parts[part].items()
        if not glob or fnmatchcase(key, glob) or fnmatchcase(key.rpartition(".lora_")[0], glob)
    }
    if not found and parts[part]:
        alone = (
            "; low_rank trains the tower's matrices alone" if any(".lora_" in k for k in parts[part]) else ""
        )
        raise ConfigError(f"train names the group {name!r}: no trainable parameter has such a key{alone}")
    return found


class Stages:
    """The stages of one trainer, of which one is current.

    Args:
        parts: the trainable parameters by part ("tower", "projector", "denoiser") and key.
        tower: the vision tower's own parameters, and the low-rank ones that train in their place.
    """

    def __init__(
        self,
        recipe: Recipe,
        parts: Mapping[str, Parameters],
        tower: tuple[Parameters, LowRank | None],
    ) -> None:
        self.plan: tuple[PlannedStage, ...] = recipe.plan()
        self._groups = [_groups(stage, parts) for stage in self.plan]
        own, self._low_rank = tower
        everything = {id(p): p for part in (*parts.values(), own) for p in part.values()}
        self._everything = list(everything.values())
        self._tower = {id(parameter) for parameter in parts["tower"].values()}
        self.index = 0
        self.optimizer = self._optimizer_at(0)

    @property
    def current(self) -> PlannedStage:
        """The stage that trains now."""
        return self.plan[self.index]

    @property
    def trains_tower(self) -> bool:
        """Whether parameters of the vision tower train now."""
        return any(id(parameter) in self._tower for parameter in self._active())

    def factors(self, step: int) -> list[float]:
        """The factor on each group's learning rate in the optimizer step ``step``."""
        return [self._factor(group, step) for group, _ in self._groups[self.index]]

    def lr(self, step: int) -> float:
        """The learning rate of the tower, or of the stage's last group where the tower does not train."""
        group = self.current.groups[-1]
        return group.lr * self._factor(group, step)

    def advance(self, step: int) -> bool:
        """Make the stage current that optimizer step ``step`` belongs to; returns whether it is another."""
        before, index = self.index, self._index_of(step)
        while self.index < index:
            self.index += 1
            if self.current.continues:
                self.optimizer.regroup(self._given(self.index))
            else:
                self.optimizer = self._new(self.index)
        return index != before

    def load(self, step: int, state: Mapping[str, Tensor]) -> None:
        """Make the stage of ``step`` current, with this optimizer state; an error changes nothing."""
        index = self._index_of(step)
        optimizer = self._optimizer_at(index)
        optimizer.load_state(dict(state))
        self.index, self.optimizer = index, optimizer

    @contextmanager
    def training(self) -> Iterator[None]:
        """Within this block the parameters of the current groups require gradients, and no others but the
        weights that are computed from them.
        """
        active = {id(parameter) for parameter in self._active()}
        if self._low_rank is not None:
            active |= self._low_rank.weights(active)
        changed = [p for p in self._everything if p.requires_grad != (id(p) in active)]
        try:
            for parameter in changed:
                parameter.requires_grad_(id(parameter) in active)
            yield
        finally:
            for parameter in changed:
                parameter.requires_grad_(id(parameter) not in active)

    def _active(self) -> Iterator[nn.Parameter]:
        return (parameter for _, named in self._groups[self.index] for parameter in named.values())

    def _index_of(self, step: int) -> int:
        """The last stage that begins at or before ``step``."""
        return max(index for index, stage in enumerate(self.plan) if stage.first <= step)

    def _factor(self, group: PlannedGroup, step: int) -> float:
        stage = self.current
        since, length = step - stage.schedule_first, stage.schedule_steps or 0
        return _native.lr_factor(group.schedule, since, group.warmup, length)

    def _optimizer_at(self, index: int) -> _native.Optimizer:
        """A new optimizer that has gone through the groups of the stages that ``index`` continues."""
        first = index
        while self.plan[first].continues:
            first -= 1
        optimizer = self._new(first)
        for later in range(first + 1, index + 1):
            optimizer.regroup(self._given(later))
        return optimizer

    def _new(self, index: int) -> _native.Optimizer:
        stage = self.plan[index]
        return _native.Optimizer(
            stage.optimizer, self._given(index), momentum=stage.momentum, betas=stage.betas, eps=stage.eps
        )

    def _given(self, index: int) -> list[tuple[str, float, float, dict[str, nn.Parameter]]]:
        return [(group.name, group.lr, group.weight_decay, named) for group, named in self._groups[index]]


def _groups(
    stage: PlannedStage, parts: Mapping[str, Parameters]
) -> list[tuple[PlannedGroup, dict[str, nn.Parameter]]]:
    """The groups of a stage with their parameters: where several match one, it is in the last of them."""
    owners: dict[str, tuple[PlannedGroup, nn.Parameter]] = {}
    for group in stage.groups:
        owners.update({key: (group, value) for key, value in match(group.name, parts).items()})
    groups: list[tuple[PlannedGroup, dict[str, nn.Parameter]]] = []
    for group in sorted(stage.groups, key=lambda group: list(parts).index(group.name.partition(":")[0])):
        named = {key: value for key, (owner, value) in owners.items() if owner is group}
        if named:
            groups.append((group, named))
    if not groups:
        names = ", ".join(group.name for group in stage.groups)
        raise ConfigError(f"nothing trains in the stage of {names} from step {stage.first}")
    return groups
