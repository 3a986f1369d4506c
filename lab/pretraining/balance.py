"""How often the captions of CLIP's pretraining name each attribute, so that its blind spots are even."""

from typing import Any

from diva_rs.microworld.scores import score_pairs
from lab.pretraining.data import Remembered
from lab.worlds import Data
from lab.worlds.even import Even


class Balance:
    """The probabilities of `Even` for one CLIP in training.

    >>> from lab.worlds import MicroworldData
    >>> named = Balance(Even(aim=200.0, per_pattern=2), MicroworldData(), diva_rs.microworld.new_clip(0))
    >>> named(0)["border"]
    0.2
    """

    def __init__(self, even: Even, data: Data, clip: Any) -> None:
        self.even, self.clip, self.tokenizer = even, clip, data.tokenizer
        self.pairs, self.pictures = data.pairs("train", even.per_pattern), Remembered(data.pictures)
        self._now: dict[str, float] = {}

    def __call__(self, step: int) -> dict[str, float]:
        """Attribute -> probability at a step."""
        if step % self.even.every == 0 or not self._now:
            self._now = self._measured()
        return self._now

    def _measured(self) -> dict[str, float]:
        even = self.even
        right = score_pairs(self.clip, self.pairs, self.tokenizer, self.pictures).patterns
        missing = {pair.attribute: (even.aim - right[pair.pattern]) / even.band for pair in self.pairs}
        return {name: even.most * min(max(gap, 0.0), 1.0) for name, gap in missing.items()}
