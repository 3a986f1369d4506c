"""What a prediction is made from: noisy latents, timesteps, and a condition by the slot that it enters."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diva_rs.errors import ConfigError, ShapeError


@dataclass(frozen=True)
class Condition:
    """The condition of one prediction; a slot that the denoiser does not have is None.

    Attributes:
        tokens: (B, S, C), for cross-attention and joint attention.
        pooled: (B, V), for class embeddings and adaLN.
    """

    tokens: Tensor | None = None
    pooled: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        """The condition with every slot that is filled changed.

        >>> Condition(pooled=torch.ones(2, 3)).map(torch.Tensor.double).pooled.dtype
        torch.float64
        """
        tokens, pooled = (None if slot is None else change(slot) for slot in (self.tokens, self.pooled))
        return Condition(tokens, pooled)


@dataclass(frozen=True)
class Slots:
    """Which slots of a denoiser carry the condition, by their width; None where it has no such slot.

    Slots of one width share the condition. Slots of two widths, or ``apart``, have columns of it each,
    the tokens' first.

    >>> Slots(pooled=16).names, Slots(tokens=24, pooled=24).width, Slots(tokens=24, pooled=16).width
    (('pooled',), 24, 40)
    """

    tokens: int | None = None
    pooled: int | None = None
    apart: bool = False

    def __post_init__(self) -> None:
        if not self.names:
            raise ConfigError(f"{self}: give at least one slot a width")

    @property
    def names(self) -> tuple[str, ...]:
        """The slots that are there."""
        return tuple(name for name in ("tokens", "pooled") if getattr(self, name) is not None)

    @property
    def split(self) -> int | None:
        """How many columns of the condition are the tokens'; None where one condition fills every slot."""
        apart = self.apart or self.pooled != self.tokens
        return self.tokens if apart and self.pooled is not None else None

    @property
    def parts(self) -> dict[str, int]:
        """The widths of the slots by name; of a condition that they share, under ""."""
        names = ("",) if self.split is None else self.names
        return {name: getattr(self, name or self.names[0]) for name in names}

    @property
    def width(self) -> int:
        """The width of the condition."""
        return sum(self.parts.values())

    def fill(self, condition: Tensor) -> Condition:
        """A condition (B, S, C) in these slots: as it is for tokens, its mean over the positions for pooled.

        >>> Slots(pooled=16).fill(torch.zeros(2, 5, 16)).pooled.shape
        torch.Size([2, 16])
        """
        tokens, pooled = condition[..., : self.split], condition[..., self.split or 0 :]
        return Condition(
            tokens=None if self.tokens is None else tokens,
            pooled=None if self.pooled is None else pooled.mean(dim=1),
        )

    def checked(self, condition: Tensor | Condition, batch: int) -> Condition:
        """A condition (B, S, C), or one by slots, in these slots; ShapeError where it does not fit.

        >>> Slots(tokens=24).checked(torch.zeros(2, 5, 24), batch=2).tokens.shape
        torch.Size([2, 5, 24])
        """
        if isinstance(condition, Tensor):
            _check("condition", condition, (batch, None, self.width))
            return self.fill(condition)
        for name in self.names:
            slot = getattr(condition, name)
            if slot is None:
                raise ShapeError(f"condition.{name} is None, but this denoiser has that slot")
            width = getattr(self, name)
            sizes = (batch, None, width) if name == "tokens" else (batch, width)
            _check(f"condition.{name}", slot, sizes)
        return Condition(**{name: getattr(condition, name) for name in self.names})


def check_noisy(noisy: Tensor, timesteps: Tensor, channels: int) -> None:
    """Raise ShapeError unless there are latents of ``channels`` channels and one timestep for each sample."""
    if noisy.ndim < 2 or noisy.shape[1] != channels or 0 in noisy.shape or not noisy.is_floating_point():
        raise ShapeError(
            f"noisy is {_shown(noisy)}, expected floating point (B, {channels}, h, w), nothing of it empty"
        )
    batch = len(noisy)
    if tuple(timesteps.shape) != (batch,) or timesteps.dtype == torch.bool:
        raise ShapeError(f"timesteps is {_shown(timesteps)}, expected numbers ({batch},), one per sample")


def _check(name: str, slot: Tensor, sizes: tuple[int | None, ...]) -> None:
    shape = tuple(slot.shape)
    fits = len(shape) == len(sizes) and 0 not in shape and slot.is_floating_point()
    if not fits or any(size not in (None, found) for found, size in zip(shape, sizes, strict=True)):
        expected = ", ".join("S" if size is None else str(size) for size in sizes)
        positions = " with S > 0" if None in sizes else ""
        raise ShapeError(f"{name} is {_shown(slot)}, expected floating point ({expected}){positions}")


def _shown(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
