"""What the study measures of a CLIP: mini-MMVP, zero-shot objects, and a probe for each attribute."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diva_rs._optional import require
from diva_rs.evaluation.features import FEATURES, collect
from diva_rs.microworld.dataset import World, pictures
from diva_rs.microworld.embedding import MEAN, STD
from diva_rs.microworld.mini_mmvp import PAIRS, mini_mmvp
from diva_rs.microworld.pretraining.data import Pixels
from diva_rs.microworld.scenes import PATTERNS, VALUES, Scene
from diva_rs.microworld.zero_shot import zero_shot_objects

_PENALTIES = tuple(10.0**n for n in range(-1, 5))  # ridge penalties that each probe chooses from
# Ridge rather than `evaluation.linear_probe`'s logistic regression: 27 probes for every run of a study, each
# in hundredths of a second.
_PROBED = tuple(name for name in VALUES if name != "object")


class Measure:
    """Scores of a CLIP on one split, made again for every model from the same pictures.

    Args:
        split: "validation" while settings are chosen, "test" once they are fixed.
        images: scenes for zero-shot and for asking the probes.
        fitted: scenes of the train split on which the probes are fitted.
        per_pattern: pairs of each pattern of mini-MMVP.

    >>> scores = Measure("validation", images=64, fitted=64, per_pattern=2)(diva_rs.microworld.new_clip(0))
    >>> sorted(scores)[:3]
    ['mini_mmvp', 'mini_mmvp/border', 'mini_mmvp/colour']
    """

    def __init__(self, split: str, images: int = 4096, fitted: int = 4096, per_pattern: int = PAIRS) -> None:
        self.per_pattern = per_pattern
        self.pairs = World(split, len(PATTERNS) * per_pattern)
        # Apart from the scenes of the pairs, and from those that anything was ever trained on.
        self.asked = _Kept(World(split, images, start=len(self.pairs)))
        self.fitted = _Kept(World("train", fitted, start=(1 << 24) - fitted))
        self._pictures: dict[Scene, Tensor] = {}

    def __call__(self, clip: nn.Module) -> dict[str, float]:
        """Scores in per cent: "mini_mmvp", "zero_shot", "probe_pooled", "probe_class", "probe_patches", and
        each of them but zero-shot per attribute ("mini_mmvp/colour")."""
        pairs = mini_mmvp(clip, self.pairs, self.per_pattern, images=self._remembered)
        scores = {"mini_mmvp": pairs.average, "zero_shot": zero_shot_objects(clip, self.asked).accuracy}
        scores |= {f"mini_mmvp/{PATTERNS[name]}": value for name, value in pairs.patterns.items()}
        return scores | self._probes(clip)

    def _probes(self, clip: nn.Module) -> dict[str, float]:
        linear = require("sklearn.linear_model", extra="eval")
        fitted, known = self.fitted.features(clip)
        asked, truth = self.asked.features(clip)
        scores: dict[str, float] = {}
        for kind in FEATURES:
            middle, spread = fitted[kind].mean(axis=0), fitted[kind].std(axis=0) + 1e-6
            rows, questions = (fitted[kind] - middle) / spread, (asked[kind] - middle) / spread
            for column, name in enumerate(VALUES):
                if name in _PROBED:
                    probe = linear.RidgeClassifierCV(_PENALTIES).fit(rows, known[:, column])
                    right = probe.predict(questions) == truth[:, column]
                    scores[f"probe_{kind}/{name}"] = 100 * float(right.mean())
            own = [scores[f"probe_{kind}/{name}"] for name in _PROBED]
            scores[f"probe_{kind}"] = float(np.mean(own))
        return scores

    def _remembered(self, scenes: Sequence[Scene]) -> Tensor:
        missing = [scene for scene in scenes if scene not in self._pictures]
        if missing:
            made = (pictures(missing) * 255).round().to(torch.uint8)
            self._pictures.update(zip(missing, made, strict=True))
        return torch.stack([self._pictures[scene] for scene in scenes]).float() / 255


class _Kept:
    """A world whose pictures and labels are made once."""

    def __init__(self, world: World) -> None:
        self.world, self.values = world, world.values

    def __len__(self) -> int:
        return len(self.world)

    @cached_property
    def _pixels(self) -> Pixels:
        return Pixels(self.world)

    @cached_property
    def _labels(self) -> Tensor:
        return self.world.labels(range(len(self.world)))

    def images(self, numbers: Sequence[int]) -> Tensor:
        return self._pixels[numbers]

    def labels(self, numbers: Sequence[int]) -> Tensor:
        return self._labels[torch.as_tensor(list(numbers))]

    def captions(self, numbers: Sequence[int], share: float, epoch: int = 0) -> list[str]:
        return self.world.captions(numbers, share, epoch)

    def detailed_captions(self, numbers: Sequence[int], epoch: int = 0) -> list[str]:
        return self.world.detailed_captions(numbers, epoch)

    def features(self, clip: nn.Module) -> tuple[dict[str, Any], Any]:
        """Kind -> (N, width) float64, and labels (N, attributes)."""
        parts = torch.split(torch.arange(len(self)), 256)
        batches = (((self.images(part.tolist()) - MEAN) / STD, None) for part in parts)
        rows, _ = collect(clip, batches, FEATURES)
        return {kind: values.double().numpy() for kind, values in rows.items()}, self._labels.numpy()
