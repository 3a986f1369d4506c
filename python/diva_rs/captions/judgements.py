"""What a diffusion model says about images: losses of contrast sets, and the calibrated verdicts."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from diva_rs._base.files import as_path
from diva_rs.captions.posteriors import Reliability, informs, posterior, reliability, temperature
from diva_rs.captions.sets import ContrastSet
from diva_rs.captions.store import Facts, Row, read, write
from diva_rs.captions.vocabulary import Vocabulary
from diva_rs.errors import DataError, shown

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Evidence:
    """The denoising losses of one contrast set of one image, before calibration.

    set      the captions
    losses   (K, n) by draw, as float64: noise and timestep are the same for all captions
    settled  whether further draws were not needed
    """

    set: ContrastSet
    losses: Array
    settled: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "losses", np.asarray(self.losses, np.float64))


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
    """The verdicts of images by sample key, a whole number (`diva_rs.draws.sample_keys`), in its order.

    Temperature and reliability are those of all sets of one name, over all images: computed when a verdict is
    first read.

    Args:
        evidence: the losses by sample key; the judgements are in the order of the keys.
        vocabulary: what the sets were made from, if they were.
        facts: what a folder of judgements says of them, with temperatures and reliability, which are then
            not calibrated again.
        given: name -> word of what was not judged, by sample key.

    Reading a verdict raises DataError where all sets of a name have less than two draws.

    >>> colour = ContrastSet("colour", ("a red car", "a blue car"), ("red", "blue"))
    >>> red = np.array([[0.1, 0.2, 0.1, 0.2], [0.5, 0.4, 0.5, 0.4]])
    >>> judgements = Judgements({key: [Evidence(colour, red if key % 2 else red[::-1])] for key in range(8)})
    >>> judgements.values(2), judgements[2][0].posterior.round(1)
    ({'colour': 'blue'}, array([0., 1.]))
    """

    def __init__(
        self,
        evidence: Mapping[int, Sequence[Evidence]],
        vocabulary: Vocabulary | None = None,
        facts: Facts | None = None,
        given: Mapping[int, Mapping[str, str]] | None = None,
    ) -> None:
        self.evidence = {int(key): tuple(sets) for key, sets in sorted(evidence.items())}
        self.vocabulary, self.given = vocabulary, given or {}
        self._facts = facts
        self._verdicts: dict[int, tuple[Verdict, ...]] = {}

    @cached_property
    def facts(self) -> Facts:
        """What is said of all judgements together."""
        return _calibrated(self.evidence) if self._facts is None else self._facts

    @cached_property
    def digest(self) -> str:
        """A hash of what they are, in hex: sets, losses, words and calibration."""
        found = hashlib.sha256(b"" if self.vocabulary is None else self.vocabulary.digest.encode())
        found.update(self.facts.model_dump_json(include={"temperatures", "reliability"}).encode())
        for row in self._rows():
            found.update(row.model_dump_json().encode())
        return found.hexdigest()[:32]

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Judgements":
        """What `save`, `judge_images` or ``diva-rs judge`` wrote; it needs no model.

        Raises DataError naming a file that is missing, damaged or no file of judgements.
        """
        facts, vocabulary, rows = read(as_path(folder))
        return cls(evidence_of(rows), vocabulary, facts, {row.key: row.given for row in rows})

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder, in place of judgements that it holds; it appears whole. Raises DataError.

        >>> import tempfile
        >>> colour = ContrastSet("colour", ("a red car", "a blue car"))
        >>> judgements = Judgements({7: [Evidence(colour, np.array([[0.1, 0.2], [0.5, 0.4]]))]})
        >>> folder = tempfile.mkdtemp() + "/judged"
        >>> judgements.save(folder)
        >>> Judgements.load(folder)[7][0].draws
        2
        """
        write(as_path(folder).absolute(), self._rows(), self.facts, self.vocabulary)

    @property
    def temperatures(self) -> Mapping[str, float]:
        """By set name."""
        return self.facts.temperatures

    @property
    def reliability(self) -> Mapping[str, Reliability]:
        """By set name."""
        return self.facts.reliability

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
        """The judged word by set name, of the sets that have a weight; the subject in any case."""
        subject, given = Vocabulary.SUBJECT, self.given.get(int(key), {})
        subjects = () if self.vocabulary is None else self.vocabulary.subjects
        found = {subject: subjects[0]} if len(subjects) == 1 else {}
        if subject in given:
            found[subject] = given[subject]
        for verdict in self[key]:
            if verdict.weight > 0 or verdict.set.name == subject:
                found[verdict.set.name] = verdict.set.words[verdict.best]
        return found

    def _rows(self) -> list[Row]:
        return [Row.of(key, sets, self.given.get(key)) for key, sets in self.evidence.items()]

    def _verdict(self, evidence: Evidence) -> Verdict:
        name, losses = evidence.set.name, evidence.losses.mean(1)
        likely = posterior(losses, self.temperatures[name])
        weight = self.reliability[name].weight if informs(likely) else 0.0
        return Verdict(evidence.set, losses, likely, evidence.losses.shape[1], evidence.settled, weight)


def evidence_of(rows: Iterable[Row]) -> dict[int, list[Evidence]]:
    """The evidence in rows of a folder, by sample key."""
    return {
        row.key: [Evidence(each.set, np.array(each.losses), each.settled) for each in row.sets]
        for row in rows
    }


def _calibrated(evidence: Mapping[int, Sequence[Evidence]]) -> Facts:
    """Temperature and reliability of each set name."""
    by_name: dict[str, list[Evidence]] = {}
    for sets in evidence.values():
        for each in sets:
            by_name.setdefault(each.set.name, []).append(each)
    temperatures, reliabilities = {}, {}
    for name, sets in by_name.items():
        sets = [each for each in sets if each.losses.shape[1] > 1]
        if not sets:
            raise DataError(
                f"no set {shown(name)} has two draws: temperature and reliability compare two halves of the "
                "draws, use draws=2 or more"
            )
        losses = [each.losses for each in sets]
        temperatures[name] = temperature(losses)
        reliabilities[name] = reliability(losses, [each.set.words for each in sets])
    return Facts(temperatures=temperatures, reliability=reliabilities)
