"""`Judge`: a diffusion model as a classifier of captions (Li et al., arXiv 2303.16203)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from diva_rs.captions.judgements import Evidence, Judgements
from diva_rs.captions.measure import Encode, Losses, Measure
from diva_rs.captions.posteriors import settled
from diva_rs.captions.sets import ContrastSet
from diva_rs.captions.vocabulary import Vocabulary
from diva_rs.diffusion import Teacher
from diva_rs.errors import ConfigError, DataError, ShapeError, shown
from diva_rs.recipes.recipe import Recipe
from diva_rs.step.draws import sample_keys

Array = np.ndarray[Any, np.dtype[Any]]

_IMAGES = 32  # that are judged together: their noise and texts are in memory


@dataclass(frozen=True, eq=False)
class Judge:
    """Says which captions fit an image best: those under which a diffusion model denoises it best.

    All captions of an image see the same noise and timesteps, which are functions of (seed, sample key, draw)
    alone: however images are batched, the losses are the same.

    Attributes:
        teacher: the diffusion model; its precision and device are those of the losses.
        draws: noises and timesteps of an image at most, 2 or more.
        first: draws before a set may be settled; further ones double their number.
        settle: a set is settled when the loss of each other caption exceeds that of the best by more than
            this many standard errors of the difference over the draws.
        timestep_range: the timesteps drawn, ``(first, end)``; None: all of the teacher's.
        loss: "mse" or "l1", of the noise, velocity or flow that the teacher predicts.
        seed: of the draws.
        backend: "auto", "native" or "torch", as in `Recipe`.
        batch: images that the denoiser sees at a time; None: as many as fill the machine.
        encode: texts -> (M, L, C), for teachers that have no text encoder; otherwise `Teacher.texts`.

    >>> teacher, images, encode = diva_rs.microworld.example("teacher", "images", "encode")
    >>> judge = Judge(teacher, draws=2, encode=encode)
    >>> one = ContrastSet("object", ("a photo of a cup", "a photo of a fish"), ("cup", "fish"))
    >>> judged = judge.judge(teacher.encode(2 * images[:3] - 1), [7, 8, 9], [[one]] * 3)
    >>> judged[8][0].posterior.shape, judged[8][0].draws
    ((2,), 2)
    """

    teacher: Teacher
    draws: int = 8
    first: int = 2
    settle: float = 3.0
    timestep_range: tuple[int, int] | None = None
    loss: Literal["mse", "l1"] = "mse"
    seed: int = 0
    backend: Literal["auto", "native", "torch"] = "auto"
    batch: int | None = None
    encode: Encode | None = None
    _measure: Measure = field(init=False, repr=False)

    def __post_init__(self) -> None:
        recipe = Recipe(
            draws=self.draws,
            timestep_range=self.timestep_range,
            loss=self.loss,
            seed=self.seed,
            backend=self.backend,
            denoiser_batch=self.batch,
        )
        if not 2 <= self.first <= self.draws:
            raise ConfigError(
                f"draws={self.draws}, first={self.first}: first must be at least 2 and at most draws"
            )
        if not self.settle >= 0:
            raise ConfigError(f"settle={shown(self.settle)}: a number of at least 0 is needed")
        object.__setattr__(self, "_measure", Measure(self.teacher, recipe, self.encode))

    def losses(
        self, latents: Tensor, keys: Any, sets: Sequence[Sequence[ContrastSet]], draws: range
    ) -> list[list[Array]]:
        """The losses (K, n) of the contrast sets of each image, over the draws of the range.

        ``latents`` (B, ...) as `Teacher.encode` gives them, ``keys`` as `diva_rs.draws.sample_keys` takes
        them, ``sets`` (B) any number of sets for each image. Float32, or float64 for a teacher of "fp64".
        """
        keys = _checked(latents, keys, sets)
        found: list[list[Array]] = []
        for part in _parts(keys):
            wanted = [list(dict.fromkeys(text for each in of for text in each.captions)) for of in sets[part]]
            losses = self._measure(latents[part], keys[part], wanted, draws)
            for several, of in zip(sets[part], losses, strict=True):
                found.append([np.stack([of[text] for text in each.captions]) for each in several])
        return found

    def judge(self, latents: Tensor, keys: Any, sets: Sequence[Sequence[ContrastSet]]) -> Judgements:
        """Judge the contrast sets of each image, with as many draws as each set needs.

        Raises DataError for losses that are not finite, and for a key that occurs twice.
        """
        keys = _checked(latents, keys, sets)
        evidence: dict[int, tuple[Evidence, ...]] = {}
        for part in _parts(keys):
            asked = [[_Asked(each, (each.captions, each.captions)) for each in of] for of in sets[part]]
            found = _Images(self, latents[part], keys[part]).settle(asked)
            evidence.update(zip(keys[part].tolist(), map(tuple, found), strict=True))
        return Judgements(evidence)

    def describe(
        self,
        latents: Tensor,
        keys: Any,
        vocabulary: Vocabulary,
        start: Sequence[Mapping[str, str]] | None = None,
        rounds: int = 2,
        names: Sequence[str] | None = None,
    ) -> Judgements:
        """Describe each image by the words of a vocabulary, by coordinate descent.

        Each round judges each name in turn, with the other values as they stand, and takes the best word. The
        sets of the last round are kept.

        The odd draws read the captions reworded: with the phrases in reverse order, in the vocabulary's
        second template if it has one. What depends on the wording alone then counts as unreliable.

        Args:
            start: name -> word for each image, such as CLIP's guesses; a name without a value is not
                mentioned until it is judged.
            rounds: at least 1.
            names: what is judged, in this order; None: `Vocabulary.attributes`. Other names keep the value
                that ``start`` gives them. The subject is judged where it is named: CLIP is good at it.

        >>> teacher, images, encode = diva_rs.microworld.example("teacher", "images", "encode")
        >>> words = diva_rs.microworld.vocabulary()
        >>> judge = Judge(teacher, draws=2, encode=encode)
        >>> latents = teacher.encode(2 * images - 1)
        >>> judged = judge.describe(latents, range(8), words, [{"subject": "fish"}] * 8, 1, ["size"])
        >>> [verdict.set.name for verdict in judged[7]]
        ['size']
        """
        if rounds < 1:
            raise ConfigError(f"rounds={shown(rounds)}: at least 1 is needed")
        start = [{}] * len(latents) if start is None else start
        keys = _checked(latents, keys, start)
        evidence: dict[int, tuple[Evidence, ...]] = {}
        given: dict[int, dict[str, str]] = {}
        for part in _parts(keys):
            images = _Images(self, latents[part], keys[part])
            values = [dict(each) for each in start[part]]
            last: list[dict[str, Evidence]] = [{} for _ in values]
            for name in tuple(vocabulary.attributes if names is None else names) * rounds:
                sets = [vocabulary.set_of(name, each) for each in values]
                others = [_reworded(vocabulary, name, each) for each in values]
                pairs = zip(sets, others, strict=True)
                asked = [[_Asked(each, (each.captions, other))] for each, other in pairs]
                for image, [each] in enumerate(images.settle(asked)):
                    last[image][name] = each
                    values[image][name] = each.set.words[int(each.losses.mean(1).argmin())]
            for key, each_last, each_values in zip(keys[part].tolist(), last, values, strict=True):
                evidence[key] = tuple(each_last.values())
                given[key] = {name: word for name, word in each_values.items() if name not in each_last}
        return Judgements(evidence, vocabulary, given=given)

    def settings(self) -> dict[str, Any]:
        """What decides the losses, beside the teacher.

        >>> clip, teacher, images = diva_rs.microworld.example()
        >>> Judge(teacher, draws=4).settings()["draws"]
        4
        """
        names = ("draws", "first", "settle", "timestep_range", "loss", "seed")
        encode = None if self.encode is None else getattr(self.encode, "__qualname__", "a callable")
        return {**{name: getattr(self, name) for name in names}, "encode": encode}


class _Asked(NamedTuple):
    """A contrast set, and its captions as the even draws and as the odd draws read them."""

    set: ContrastSet
    captions: tuple[Sequence[str], Sequence[str]]


class _Images:
    """Some images that are judged together, and what was measured: each loss once, for all sets."""

    def __init__(self, judge: Judge, latents: Tensor, keys: Array) -> None:
        self.judge, self.latents, self.keys = judge, latents, keys
        self.known: tuple[list[Losses], list[Losses]] = ([{} for _ in keys], [{} for _ in keys])

    def settle(self, asked: Sequence[Sequence[_Asked]]) -> list[list[Evidence]]:
        """The evidence of the sets of each image, by as many draws as each set needs."""
        judge, draws = self.judge, self.judge.first
        found: list[dict[int, Evidence]] = [{} for _ in asked]
        while True:
            left = [
                {place: each for place, each in enumerate(of) if place not in done}
                for of, done in zip(asked, found, strict=True)
            ]
            if not any(left):
                return [[done[place] for place in sorted(done)] for done in found]
            for half in (0, 1):
                self._extend([[each.captions[half] for each in of.values()] for of in left], half, draws)
            for image, of in enumerate(left):
                for place, each in of.items():
                    losses = self._losses(image, each, draws)
                    sure = settled(losses, judge.settle)
                    if sure or draws == judge.draws:
                        found[image][place] = Evidence(each.set, losses, sure)
            draws = min(2 * draws, judge.draws)

    def _extend(self, wanted: Sequence[Sequence[Sequence[str]]], half: int, draws: int) -> None:
        """Measure what is missing of one half of the first ``draws`` draws, under captions of each image."""
        known, enough = self.known[half], len(range(half, draws, 2))
        counts = [
            {text: len(of.get(text, ())) for captions in several for text in captions}
            for several, of in zip(wanted, known, strict=True)
        ]
        for there in sorted({count for of in counts for count in of.values() if count < enough}):
            texts = [[text for text, count in of.items() if count == there] for of in counts]
            more = self.judge._measure(self.latents, self.keys, texts, range(half + 2 * there, draws, 2))
            for of, losses in zip(known, more, strict=True):
                for text, each in losses.items():
                    of[text] = np.concatenate([of.get(text, each[:0]), each])

    def _losses(self, image: int, asked: _Asked, draws: int) -> Array:
        """The losses (K, n) of a set, by draw."""
        losses = np.empty((len(asked.set), draws))
        for half in (0, 1):
            of, count = self.known[half][image], len(range(half, draws, 2))
            losses[:, half::2] = [of[text][:count] for text in asked.captions[half]]
        return losses


def _reworded(vocabulary: Vocabulary, name: str, values: Mapping[str, str]) -> list[str]:
    """The captions of a set with phrases in reverse, in the vocabulary's second template if it has one."""
    order, template = [*vocabulary.attributes][::-1], min(1, len(vocabulary.templates) - 1)
    return [vocabulary.caption({**values, name: word}, order, template) for word in vocabulary.words(name)]


def _parts(keys: Array) -> Iterator[slice]:
    return (slice(start, start + _IMAGES) for start in range(0, len(keys), _IMAGES))


def _checked(latents: Tensor, keys: Any, each: Sequence[Any]) -> Array:
    """The keys of the images, all different."""
    found: Array = sample_keys(keys)
    if not len(latents) == len(found) == len(each):
        raise ShapeError(
            f"{len(latents)} latents, {len(found)} keys, {len(each)} sets: one of each per image"
        )
    if len(np.unique(found)) < len(found):
        values, counts = np.unique(found, return_counts=True)
        raise DataError(f"key {values[counts.argmax()]} occurs twice: each image needs its own")
    return found
