"""What a prediction is conditioned on, by the slot through which it enters a denoiser."""

from dataclasses import dataclass

from torch import Tensor

from diva_rs.errors import ConfigError


@dataclass(frozen=True)
class Condition:
    """The condition of one prediction; a slot that the denoiser does not have is None.

    Attributes:
        tokens: (B, S, C), for cross-attention and joint attention.
        pooled: (B, V), for class embeddings and adaLN.
    """

    tokens: Tensor | None = None
    pooled: Tensor | None = None


@dataclass(frozen=True)
class Slots:
    """Which slots of a denoiser carry the condition, by their width; None where it has no such slot.

    >>> Slots(pooled=16).names, Slots(tokens=24, pooled=24).width
    (('pooled',), 24)
    """

    tokens: int | None = None
    pooled: int | None = None

    def __post_init__(self) -> None:
        widths = {width for width in (self.tokens, self.pooled) if width is not None}
        if len(widths) != 1:
            raise ConfigError(
                f"{self}: give at least one slot a width; slots of different widths are not supported, "
                "because one projector fills them all"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The slots that are there."""
        slots = {"tokens": self.tokens, "pooled": self.pooled}
        return tuple(name for name, width in slots.items() if width is not None)

    @property
    def width(self) -> int:
        """The width of the condition."""
        width = self.pooled if self.tokens is None else self.tokens
        assert width is not None
        return width

    def fill(self, condition: Tensor) -> Condition:
        """A condition (B, S, C) in these slots: as it is for tokens, its mean over the positions for pooled.

        >>> Slots(pooled=16).fill(torch.zeros(2, 5, 16)).pooled.shape
        torch.Size([2, 16])
        """
        return Condition(
            tokens=None if self.tokens is None else condition,
            pooled=None if self.pooled is None else condition.mean(dim=1),
        )
