"""The scores of the study: mini-MMVP, zero-shot objects, and a probe for each attribute."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn

from diva_rs.microworld.scores import PAIRS, score_pairs, zero_shot_objects
from lab.pretraining.data import Remembered
from lab.study.outcomes import Outcomes, Scores
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
        self.pictures = Remembered(self.data.pictures)

    def __call__(self, clip: nn.Module) -> Scores:
        """Scores in per cent: "mini_mmvp", "zero_shot", "probe_pooled", "probe_class", "probe_patches", and
        each of them but zero-shot per attribute ("mini_mmvp/colour")."""
        pairs = score_pairs(clip, self.pairs, self.data.tokenizer, self.pictures)
        named = zero_shot_objects(clip, self.asked, template=self.data.template)
        scores = {"mini_mmvp": pairs.average, "zero_shot": named.accuracy}
        attributes = {pair.pattern: pair.attribute for pair in self.pairs}
        scores |= {f"mini_mmvp/{attributes[name]}": value for name, value in pairs.patterns.items()}
        right = np.full((len(self.pairs), len(attributes)), np.nan)
        for row, (pair, one) in enumerate(zip(self.pairs, pairs.pairs, strict=True)):
            right[row, list(attributes).index(pair.pattern)] = one.correct
        outcomes = {"mini_mmvp": Outcomes(tuple(attributes.values()), right)}
        outcomes["zero_shot"] = Outcomes((), np.array(named.outcomes, np.float64)[:, None])
        probes = self.probes(clip)
        for kind, found in probes.items():
            own = found.scores()
            scores |= {f"{kind}/{name}": value for name, value in own.items()}
            scores[kind] = float(np.mean(list(own.values())))
        return Scores(scores, outcomes | probes)


def measure_all(splits: Sequence[str], *settings: Any) -> Callable[[nn.Module], Scores]:
    """`Measure` on several splits; the scores of all but the first have their split's name in front.

    >>> measure = measure_all(["validation", "test"], 64, 64, 2)
    >>> sorted(measure(diva_rs.microworld.new_clip(0)))[-2:]
    ['test zero_shot', 'zero_shot']
    """
    first, *others = (Measure(split, *settings) for split in splits)

    def scores(clip: nn.Module) -> Scores:
        found = first(clip)
        for split, measure in zip(splits[1:], others, strict=True):
            more = measure(clip)
            found.update({f"{split} {name}": value for name, value in more.items()})
            found.outcomes.update({f"{split} {name}": one for name, one in more.outcomes.items()})
        return found

    return scores
