"""The scores of the study: mini-MMVP, zero-shot objects, and a probe for each attribute."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diva_rs.microworld.dataset import World, pictures
from diva_rs.microworld.scenes import PATTERNS, Scene
from diva_rs.microworld.scores import PAIRS, mini_mmvp, zero_shot_objects
from lab.study.probes import Kept, Probes


class Measure:
    """Scores of CLIPs on one split, all from the same pictures.

    Args:
        split: "validation" while settings are chosen, "test" once they are fixed.
        images: scenes for zero-shot and for scoring the probes.
        fitted: scenes of the train split on which the probes are fitted.
        per_pattern: pairs of each pattern of mini-MMVP.

    >>> scores = Measure("validation", images=64, fitted=64, per_pattern=2)(diva_rs.microworld.new_clip(0))
    >>> sorted(scores)[:3]
    ['mini_mmvp', 'mini_mmvp/border', 'mini_mmvp/colour']
    """

    def __init__(self, split: str, images: int = 4096, fitted: int = 4096, per_pattern: int = PAIRS) -> None:
        self.per_pattern = per_pattern
        self.pairs = World(split, len(PATTERNS) * per_pattern)
        # Apart from the scenes of the pairs and from all training scenes.
        self.asked = Kept(World(split, images, start=len(self.pairs)))
        self.probes = Probes(Kept(World("train", fitted, start=(1 << 24) - fitted)), self.asked)
        self._pictures: dict[Scene, Tensor] = {}

    def __call__(self, clip: nn.Module) -> dict[str, float]:
        """Scores in per cent: "mini_mmvp", "zero_shot", "probe_pooled", "probe_class", "probe_patches", and
        each of them but zero-shot per attribute ("mini_mmvp/colour")."""
        pairs = mini_mmvp(clip, self.pairs, self.per_pattern, images=self._remembered)
        scores = {"mini_mmvp": pairs.average, "zero_shot": zero_shot_objects(clip, self.asked).accuracy}
        scores |= {f"mini_mmvp/{PATTERNS[name]}": value for name, value in pairs.patterns.items()}
        return scores | self.probes(clip)

    def _remembered(self, scenes: Sequence[Scene]) -> Tensor:
        missing = [scene for scene in scenes if scene not in self._pictures]
        if missing:
            made = (pictures(missing) * 255).round().to(torch.uint8)
            self._pictures.update(zip(missing, made, strict=True))
        return torch.stack([self._pictures[scene] for scene in scenes]).float() / 255
