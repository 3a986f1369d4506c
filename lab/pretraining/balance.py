"""How often the captions of CLIP's pretraining name each attribute, so that its blind spots are even."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diva_rs.microworld.scores import score_pairs

if TYPE_CHECKING:
    from lab.worlds import Data


@dataclass(frozen=True)
class Even:
    """An attribute is named more often, the fewer of its pairs are right.

    Its probability is ``most`` * (``aim`` - pairs right) / ``band``, limited to [0, ``most``]. The pairs are
    those of the train split, at most ``per_pattern`` of each attribute, and are scored every ``every`` steps.

    Attributes:
        aim, band: in per cent of the pairs.
    """

    aim: float = 33.0
    band: float = 10.0
    most: float = 0.2
    every: int = 5
    per_pattern: int = 64


class Balance:
    """The probabilities of `Even` for one CLIP in training.

    >>> from lab.worlds import MicroworldData
    >>> named = Balance(Even(aim=200.0, per_pattern=2), MicroworldData(), diva_rs.microworld.new_clip(0))
    >>> named(0)["border"]
    0.2
    """

    def __init__(self, even: Even, data: "Data", clip: Any) -> None:
        self.even, self.data, self.clip = even, data, clip
        self.pairs = data.pairs("train", even.per_pattern)
        self._pictures: dict[Any, Tensor] = {}
        self._now: dict[str, float] = {}

    def __call__(self, step: int) -> dict[str, float]:
        """Attribute -> probability at a step."""
        if step % self.even.every == 0 or not self._now:
            self._now = self._measured()
        return self._now

    def _measured(self) -> dict[str, float]:
        even = self.even
        right = score_pairs(self.clip, self.pairs, self.data.tokenizer, self._remembered).patterns
        missing = {pair.attribute: (even.aim - right[pair.pattern]) / even.band for pair in self.pairs}
        return {name: even.most * min(max(gap, 0.0), 1.0) for name, gap in missing.items()}

    def _remembered(self, items: Sequence[Any]) -> Tensor:
        new = [item for item in items if item not in self._pictures]
        if new:
            self._pictures.update(zip(new, self.data.pictures(new), strict=True))
        return torch.stack([self._pictures[item] for item in items])
