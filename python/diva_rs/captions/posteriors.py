"""From denoising losses to posteriors: when draws suffice, temperature and reliability without labels.

The losses of one contrast set are (K, n): K captions, n draws with the noise and timesteps shared by all
captions. The even and the odd draws are two independent halves, each of which has a best caption. How often
they agree says how reliable a name's sets are; how well one predicts the other gives the temperature.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diva_rs.evaluation.statistics import wilson_interval

Array = np.ndarray[Any, np.dtype[Any]]

_SCALES = np.logspace(-3, 3, 241)  # of temperatures, in units of the usual difference between captions
_LOST = 0.5  # nats of all sets together: a temperature this much less likely than the best is as good
_FLAT = 0.05  # of log K: a posterior that says less carries no gradient
_ERRORS = 2.0  # standard errors that agreement must lie above chance
# Of the way from chance to full agreement (Cohen's kappa): what a model that sees nothing gets from errors
# that both halves share. In the microworld, unseen attributes have 0.15 to 0.22, seen ones 0.45 and more.
_SLIGHT = 0.25


@dataclass(frozen=True)
class Reliability:
    """How reliable the judgements of one set name are, estimated without labels.

    agreement  how often the two halves of the draws have the same best caption
    accuracy   of one half: the ``a`` of ``a**2 + (1 - a)**2 / (K - 1)``, the agreement of two judges who err
               independently and towards each wrong caption alike; the agreement that a liking for certain
               words explains is taken off first
    chance     the accuracy of a guess, 1 / K
    images     contrast sets that were compared
    above      whether the agreement, by the draws that all sets have, is above that of chance by more than
               two standard errors, and by all draws by a quarter of the way to full agreement
    interval   of the accuracy: where it is with 95 % confidence, by Wilson's interval of the agreement
    """

    agreement: float
    accuracy: float
    chance: float
    images: int
    above: bool
    interval: tuple[float, float] = (0.0, 1.0)

    @property
    def weight(self) -> float:
        """0 where the agreement is not above chance, otherwise the accuracy's way from chance to 1."""
        return (self.accuracy - self.chance) / (1 - self.chance) if self.above else 0.0


def posterior(losses: Array, temperature: float) -> Array:
    """The posterior (K,) of mean losses (K,): softmax(-(L - min L) / temperature).

    >>> posterior(np.array([1.0, 1.0, 50.0]), 0.1).round(3)
    array([0.5, 0.5, 0. ])
    """
    odds = np.exp(-(losses - losses.min()) / temperature)
    return np.asarray(odds / odds.sum())


def informs(posterior: Array) -> bool:
    """Whether a posterior (K,) is not flat: it holds at least a twentieth of log K nats.

    >>> informs(np.array([0.9, 0.1])), informs(np.array([0.5, 0.5]))
    (True, False)
    """
    positive = posterior[posterior > 0]
    return bool(1 + (positive * np.log(positive)).sum() / np.log(len(posterior)) >= _FLAT)


def settled(losses: Array, errors: float) -> bool:
    """Whether the best of K captions is certain: the paired difference of every other one to it, over the
    draws of ``losses`` (K, n), exceeds ``errors`` of its standard errors.

    >>> settled(np.array([[1.0, 2.0, 3.0], [2.0, 3.1, 3.9]]), 3.0)
    True
    """
    draws = losses.shape[1]
    if draws < 2:
        return False
    best = losses.mean(1).argmin()
    difference = np.delete(losses - losses[best], best, axis=0)
    error = difference.std(1, ddof=1) / np.sqrt(draws)
    return bool((difference.mean(1) > errors * error).all())


def temperature(sets: Sequence[Array]) -> float:
    """The temperature of sets (K, n) of one name, n at least 2, without labels.

    It maximises the likelihood of one half's best caption under the posterior of the other half, both ways;
    of temperatures that are about equally likely it is the largest.
    """
    halves = [pair for losses in sets for pair in _halves(losses)]
    size = max(len(losses) for losses, _ in halves)
    above = np.full((len(halves), size), np.inf)  # absent captions have no probability
    for row, (losses, _) in zip(above, halves, strict=True):
        row[: len(losses)] = losses - losses.min()
    right = np.array([above[row, best] for row, (_, best) in enumerate(halves)])
    usual = np.median(above[np.isfinite(above) & (above > 0)]) if (above > 0).any() else 1.0

    def likelihood(temperature: float) -> float:
        return float((-right / temperature - np.log(np.exp(-above / temperature).sum(1))).sum())

    candidates = usual * _SCALES
    found = np.array([likelihood(candidate) for candidate in candidates])
    return float(candidates[np.flatnonzero(found >= found.max() - _LOST)[-1]])


def reliability(sets: Sequence[Array], words: Sequence[Sequence[str]]) -> Reliability:
    """The reliability of sets (K, n) of one name, n at least 2; their captions differ in ``words`` (K)."""
    guess = float(np.mean([1 / len(losses) for losses in sets]))
    agreement, liking = _agreement(sets, words)
    ends = (agreement, *wilson_interval(round(agreement * len(sets)), len(sets)))
    accuracy, low, high = (_accuracy(end, liking, guess) for end in ends)
    # Sets that were settled early agree more often, by choice: the draws that all sets have are no choice.
    fewest = min(losses.shape[1] for losses in sets)
    fair, by_liking = _agreement([losses[:, :fewest] for losses in sets], words)
    above = fair > by_liking + _ERRORS * np.sqrt(by_liking * (1 - by_liking) / len(sets))
    above &= agreement - liking > _SLIGHT * (1 - liking)
    return Reliability(agreement, accuracy, guess, len(sets), bool(above), (low, high))


def _agreement(sets: Sequence[Array], words: Sequence[Sequence[str]]) -> tuple[float, float]:
    """How often the two halves have the same best caption, and how often by their liking for words."""
    bests = [[best for _, best in _halves(losses)] for losses in sets]
    return float(np.mean([first == second for first, second in bests])), _by_liking(words, bests)


def _accuracy(agreement: float, liking: float, guess: float) -> float:
    """The accuracy of one half of the draws: see `Reliability`."""
    # The agreement without a liking for words, of which chance is the agreement by itself.
    fair = guess + (1 - guess) * (agreement - liking) / (1 - liking) if liking < 1 else guess
    share = guess / (1 - guess)  # 1 / (K - 1)
    root = share**2 - (1 + share) * (share - fair)
    return float(min((share + np.sqrt(max(root, 0.0))) / (1 + share), 1.0))


def _halves(losses: Array) -> list[tuple[Array, int]]:
    """The mean losses (K,) of each half of the draws, with the best caption of the other half."""
    first, second = losses[:, ::2].mean(1), losses[:, 1::2].mean(1)
    return [(first, int(second.argmin())), (second, int(first.argmin()))]


def _by_liking(words: Sequence[Sequence[str]], bests: Sequence[Sequence[int]]) -> float:
    """The agreement of two halves that choose each word as often as it is chosen in the other sets.

    Words that occur in one set only are chosen alike.
    """
    chosen: Counter[str] = Counter()
    offered: Counter[str] = Counter()
    for names, pair in zip(words, bests, strict=True):
        offered.update(names)
        chosen.update(names[best] for best in pair)
    agreements = []
    for names, pair in zip(words, bests, strict=True):
        own = Counter(names[best] for best in pair)
        others = [2 * (offered[name] - 1) + len(names) for name in names]
        odds = np.array([chosen[name] - own[name] + 1 for name in names]) / others
        agreements.append(((odds / odds.sum()) ** 2).sum())
    return float(np.mean(agreements))
