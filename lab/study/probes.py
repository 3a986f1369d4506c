"""Linear probes of every attribute of a dataset, on the same pictures for every model."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diva_rs._base.optional import require
from diva_rs.evaluation.features import FEATURES, collect
from diva_rs.microworld.models import MEAN, STD
from lab.pretraining.data import Captioned, Pixels
from lab.study.outcomes import Outcomes

_PENALTIES = tuple(10.0**n for n in range(-1, 5))  # ridge penalties that each probe chooses from


class Probes:
    """Accuracy of linear maps from a CLIP's features to each attribute other than the subject.

    Ridge regression instead of the logistic regression of `evaluation.linear_probe`: a study fits 27 probes
    per run, and these take hundredths of a second.

    Args:
        fitted: the images for fitting.
        asked: the images for scoring.
    """

    def __init__(self, fitted: "Kept", asked: "Kept") -> None:
        self.fitted, self.asked = fitted, asked

    def __call__(self, clip: nn.Module) -> dict[str, Outcomes]:
        """Whether the probes are right: "probe_pooled", "probe_class", "probe_patches".

        An attribute's probe leaves out the images to which it does not apply: it would read the subject.
        """
        linear = require("sklearn.linear_model", extra="eval")
        fitted, known = self.fitted.features(clip)
        asked, truth = self.asked.features(clip)
        found: dict[str, Outcomes] = {}
        columns = {
            name: column for column, name in enumerate(self.asked.values) if name != self.asked.subject
        }
        for kind in FEATURES:
            middle, spread = fitted[kind].mean(axis=0), fitted[kind].std(axis=0) + 1e-6
            rows, questions = (fitted[kind] - middle) / spread, (asked[kind] - middle) / spread
            right = np.full((len(truth), len(columns)), np.nan)
            for place, (name, column) in enumerate(columns.items()):
                empty = [number for number, word in enumerate(self.asked.values[name]) if not word]
                train, test = (~np.isin(of[:, column], empty) for of in (known, truth))
                probe = linear.RidgeClassifierCV(_PENALTIES).fit(rows[train], known[train, column])
                right[test, place] = probe.predict(questions[test]) == truth[test, column]
            found[f"probe_{kind}"] = Outcomes(tuple(columns), right)
        return found


class Kept:
    """A dataset whose pictures and labels are computed once."""

    def __init__(self, dataset: Captioned) -> None:
        self.dataset = dataset
        self.values, self.subject, self.vocabulary = dataset.values, dataset.subject, dataset.vocabulary
        self.tokenizer, self.first = dataset.tokenizer, dataset.first

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def _pixels(self) -> Pixels:
        return Pixels(self.dataset)

    @cached_property
    def _labels(self) -> Tensor:
        return self.dataset.labels(range(len(self.dataset)))

    def images(self, numbers: Sequence[int]) -> Tensor:
        return self._pixels[numbers]

    def labels(self, numbers: Sequence[int]) -> Tensor:
        return self._labels[torch.as_tensor(list(numbers))]

    def captions(
        self, numbers: Sequence[int], share: float | Mapping[str, float], epoch: int = 0
    ) -> list[str]:
        return self.dataset.captions(numbers, share, epoch)

    def detailed_captions(self, numbers: Sequence[int], epoch: int = 0) -> list[str]:
        return self.dataset.detailed_captions(numbers, epoch)

    def features(self, clip: nn.Module) -> tuple[dict[str, Any], Any]:
        """Kind -> (N, width) float64, and labels (N, attributes)."""
        parts = torch.split(torch.arange(len(self)), 256)
        batches = (((self.images(part.tolist()) - MEAN) / STD, None) for part in parts)
        rows, _ = collect(clip, batches, FEATURES)
        return {kind: values.double().numpy() for kind, values in rows.items()}, self._labels.numpy()
