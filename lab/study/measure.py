"""The scores of the study: mini-MMVP, zero-shot objects, and a probe for each attribute."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs.microworld.scores import PAIRS, score_pairs, zero_shot_objects
from lab.study.probes import Kept, Probes
from lab.worlds import Data, MicroworldData


class Measure:
    """Scores of CLIPs on one split, all from the same pictures.

    Args:
        split: "validation" while settings are chosen, "test" once they are fixed.
        images: scenes for zero-shot and for scoring the probes.
        fitted: scenes of the train split on which the probes are fitted.
        per_pattern: pairs of each pattern of mini-MMVP.
        data: the world; None: the microworld.

    >>> scores = Measure("validation", images=64, fitted=64, per_pattern=2)(diva_rs.microworld.new_clip(0))
    >>> sorted(scores)[:3]
    ['mini_mmvp', 'mini_mmvp/border', 'mini_mmvp/colour']
    """

    def __init__(
        self,
        split: str,
        images: int = 4096,
        fitted: int = 4096,
        per_pattern: int = PAIRS,
        data: Data | None = None,
    ) -> None:
        self.data = data or MicroworldData()
        self.pairs = self.data.pairs(split, per_pattern)
        self.asked = Kept(self.data.scored(split, images, per_pattern))
        self.probes = Probes(Kept(self.data.fitted(fitted)), self.asked)
        self._pictures: dict[Any, Tensor] = {}

    def __call__(self, clip: nn.Module) -> dict[str, float]:
        """Scores in per cent: "mini_mmvp", "zero_shot", "probe_pooled", "probe_class", "probe_patches", and
        each of them but zero-shot per attribute ("mini_mmvp/colour")."""
        pairs = score_pairs(clip, self.pairs, self.data.tokenizer, self._remembered)
        named = zero_shot_objects(clip, self.asked, template=self.data.template)
        scores = {"mini_mmvp": pairs.average, "zero_shot": named.accuracy}
        attributes = {pair.pattern: pair.attribute for pair in self.pairs}
        scores |= {f"mini_mmvp/{attributes[name]}": value for name, value in pairs.patterns.items()}
        return scores | self.probes(clip)

    def _remembered(self, items: Sequence[Any]) -> Tensor:
        missing = [item for item in items if item not in self._pictures]
        if missing:
            made = (self.data.pictures(missing) * 255).round().to(torch.uint8)
            self._pictures.update(zip(missing, made, strict=True))
        return torch.stack([self._pictures[item] for item in items]).float() / 255
