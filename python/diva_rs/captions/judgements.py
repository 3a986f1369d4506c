"""What a diffusion model says about images: losses of contrast sets, and the calibrated verdicts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diva_rs.captions.posteriors import Reliability, informs, posterior, reliability, temperature
from diva_rs.captions.sets import ContrastSet
from diva_rs.captions.vocabulary import Vocabulary
from diva_rs.errors import DataError, shown

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Evidence:
    """The denoising losses of one contrast set of one image, before calibration.

    set      the captions
    losses   (K, n) float32 or float64, by draw: noise and timestep are the same for all captions
    settled  whether further draws were not needed
    """

    set: ContrastSet
    losses: Array
    settled: bool = False


@dataclass(frozen=True, eq=False)
class Verdict:
    """One judged contrast set of one image.

    set        the captions
    losses     (K,): the mean denoising loss under each
    posterior  (K,): softmax(-(losses - min) / temperature), which sums to 1
    draws      draws that were used
    settled    whether further draws were not needed
    weight     in [0, 1]; 0 where the posterior is flat or the sets of this name are unreliable
    """

    set: ContrastSet
    losses: Array
    posterior: Array
    draws: int
    settled: bool
    weight: float

    @property
    def best(self) -> int:
        """The index of the most likely caption."""
        return int(self.losses.argmin())


class Judgements(Mapping[int, tuple[Verdict, ...]]):
    """The verdicts of images by sample key, a whole number (`diva_rs.draws.sample_keys`).

    Temperature and reliability are those of all sets of one name, over all images.

    Args:
        evidence: the losses by sample key.
        vocabulary: what the sets were made from, if they were.

    Raises DataError where all sets of a name have less than two draws.

    >>> colour = ContrastSet("colour", ("a red car", "a blue car"), ("red", "blue"))
    >>> red = np.array([[0.1, 0.2, 0.1, 0.2], [0.5, 0.4, 0.5, 0.4]])
    >>> judgements = Judgements({key: [Evidence(colour, red if key % 2 else red[::-1])] for key in range(8)})
    >>> judgements.values(2), judgements[2][0].posterior.round(1)
    ({'colour': 'blue'}, array([0., 1.]))
    """

    def __init__(
        self, evidence: Mapping[int, Sequence[Evidence]], vocabulary: Vocabulary | None = None
    ) -> None:
        self.evidence = {int(key): tuple(sets) for key, sets in evidence.items()}
        self.vocabulary = vocabulary
        by_name: dict[str, list[Evidence]] = {}
        for sets in self.evidence.values():
            for each in sets:
                by_name.setdefault(each.set.name, []).append(each)
        losses = {name: [each.losses for each in sets] for name, sets in by_name.items()}
        for name, several in losses.items():
            if all(each.shape[1] < 2 for each in several):
                raise DataError(
                    f"no set {shown(name)} has two draws: temperature and reliability compare two halves of "
                    "the draws, use draws=2 or more"
                )
        words = {name: [each.set.words for each in sets] for name, sets in by_name.items()}
        self.temperatures: Mapping[str, float] = {name: temperature(each) for name, each in losses.items()}
        self.reliability: Mapping[str, Reliability] = {
            name: reliability(each, words[name]) for name, each in losses.items()
        }
        self._verdicts: dict[int, tuple[Verdict, ...]] = {}

    def __getitem__(self, key: int) -> tuple[Verdict, ...]:
        key = int(key)
        if key not in self._verdicts:
            self._verdicts[key] = tuple(map(self._verdict, self.evidence[key]))
        return self._verdicts[key]

    def __iter__(self) -> Iterator[int]:
        return iter(self.evidence)

    def __len__(self) -> int:
        return len(self.evidence)

    def values(self, key: int) -> dict[str, str]:  # type: ignore[override]
        """The judged word by set name, of the sets that have a weight, and the subject in any case."""
        subject = Vocabulary.SUBJECT
        subjects = () if self.vocabulary is None else self.vocabulary.subjects
        found = {subject: subjects[0]} if len(subjects) == 1 else {}
        for verdict in self[key]:
            if verdict.weight > 0 or verdict.set.name == subject:
                found[verdict.set.name] = verdict.set.words[verdict.best]
        return found

    def _verdict(self, evidence: Evidence) -> Verdict:
        name, losses = evidence.set.name, evidence.losses.mean(1)
        likely = posterior(losses, self.temperatures[name])
        weight = self.reliability[name].weight if informs(likely) else 0.0
        return Verdict(evidence.set, losses, likely, evidence.losses.shape[1], evidence.settled, weight)
