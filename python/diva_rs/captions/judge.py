"""`Judge`: a diffusion model as a classifier of captions (Li et al., arXiv 2303.16203)."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import diva_rs._native as _native
from diva_rs.captions.judgements import Evidence, Judgements
from diva_rs.captions.posteriors import settled
from diva_rs.captions.sets import ContrastSet
from diva_rs.captions.vocabulary import Vocabulary
from diva_rs.diffusion import Teacher
from diva_rs.errors import ConfigError, DataError, ShapeError, shown
from diva_rs.native.choose import Part, choose_denoiser
from diva_rs.recipes.recipe import Recipe
from diva_rs.step.draws import DrawPlan, sample_keys

Array = np.ndarray[Any, np.dtype[Any]]
Known = dict[str, Array]  # losses (n,) of an image by caption

_IMAGES = 32  # that are judged together: their noise and texts are in memory
_TEXTS = 512  # encoded captions that are kept


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

    >>> judge = Judge(teacher, draws=2, encode=lambda texts: torch.randn(len(texts), 8, 24))
    >>> colours = ContrastSet("colour", ("a red car", "a blue car"), ("red", "blue"))
    >>> judged = judge.judge(torch.randn(3, 3, 16, 16), [7, 8, 9], [[colours]] * 3)
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
    encode: Callable[[list[str]], Tensor] | None = None
    _part: Part = field(init=False, repr=False)
    _core: _native.Judge = field(init=False, repr=False)
    _texts: "OrderedDict[str, Tensor]" = field(init=False, repr=False, default_factory=OrderedDict)

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
        end, steps = (recipe.timestep_range or (0, 0))[1], len(self.teacher.schedule)
        if end > steps:
            raise ConfigError(f"timestep_range={self.timestep_range}: the teacher has {steps} timesteps")
        part = choose_denoiser(self.teacher, recipe)
        native = _native.Judge(part.network, self.teacher.schedule, self.loss, self.batch)
        object.__setattr__(self, "_part", part)
        object.__setattr__(self, "_core", native)

    def losses(
        self, latents: Tensor, keys: Any, sets: Sequence[Sequence[ContrastSet]], draws: range
    ) -> list[list[Array]]:
        """The losses (K, n) of the contrast sets of each image, over the draws of the range.

        ``latents`` (B, ...) as `Teacher.encode` gives them, ``keys`` as `diva_rs.draws.sample_keys` takes
        them, ``sets`` (B) any number of sets for each image. Float32, or float64 for a teacher of "fp64".
        """
        keys = _checked(latents, keys, sets)
        wanted = [list(dict.fromkeys(text for each in of for text in each.captions)) for of in sets]
        found = [self._measured(latents[part], keys[part], wanted[part], draws) for part in _parts(len(keys))]
        known = [each for several in found for each in several]
        return [[_of(each, image) for each in of] for of, image in zip(sets, known, strict=True)]

    def judge(self, latents: Tensor, keys: Any, sets: Sequence[Sequence[ContrastSet]]) -> Judgements:
        """Judge the contrast sets of each image, with as many draws as each set needs.

        Raises DataError for losses that are not finite, and for a key that occurs twice.
        """
        keys = _checked(latents, keys, sets)
        evidence: dict[int, tuple[Evidence, ...]] = {}
        for part in _parts(len(keys)):
            known: list[Known] = [{} for _ in keys[part]]
            found = self._settled(latents[part], keys[part], sets[part], known)
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

        Args:
            start: name -> word for each image, such as CLIP's guesses; a name without a value is not
                mentioned until it is judged.
            rounds: at least 1.
            names: what is judged, in this order; None: all of the vocabulary's. Other names keep the value
                that ``start`` gives them.

        >>> vocabulary = Vocabulary({"colour": ("red", "blue"), "size": ("big", "small")})
        >>> judge = Judge(teacher, draws=2, encode=lambda texts: torch.randn(len(texts), 8, 24))
        >>> [verdict.set.name for verdict in judge.describe(torch.randn(1, 3, 16, 16), [7], vocabulary)[7]]
        ['colour', 'size']
        """
        if rounds < 1:
            raise ConfigError(f"rounds={shown(rounds)}: at least 1 is needed")
        start = [{}] * len(latents) if start is None else start
        keys = _checked(latents, keys, start)
        evidence: dict[int, tuple[Evidence, ...]] = {}
        given: dict[int, dict[str, str]] = {}
        for part in _parts(len(keys)):
            known: list[Known] = [{} for _ in keys[part]]
            values = [dict(each) for each in start[part]]
            last: list[dict[str, Evidence]] = [{} for _ in values]
            for name in tuple(vocabulary.names() if names is None else names) * rounds:
                sets = [[vocabulary.set_of(name, each)] for each in values]
                found = self._settled(latents[part], keys[part], sets, known)
                for image, [each] in enumerate(found):
                    last[image][name] = each
                    values[image][name] = each.set.words[int(each.losses.mean(1).argmin())]
            for key, each_last, each_values in zip(keys[part].tolist(), last, values, strict=True):
                evidence[key] = tuple(each_last.values())
                given[key] = {name: word for name, word in each_values.items() if name not in each_last}
        return Judgements(evidence, vocabulary, given=given)

    def settings(self) -> dict[str, Any]:
        """What decides the losses, beside the teacher.

        >>> Judge(teacher, draws=4).settings()["draws"]
        4
        """
        names = ("draws", "first", "settle", "timestep_range", "loss", "seed")
        encode = None if self.encode is None else getattr(self.encode, "__qualname__", "a callable")
        return {**{name: getattr(self, name) for name in names}, "encode": encode}

    def _settled(
        self,
        latents: Tensor,
        keys: Array,
        sets: Sequence[Sequence[ContrastSet]],
        known: Sequence[Known],
    ) -> list[list[Evidence]]:
        """The evidence of the sets of each image; ``known`` holds what was measured, and gets the rest."""
        found: list[dict[int, Evidence]] = [{} for _ in sets]
        look = self.first
        while True:
            missing: dict[int, list[list[str]]] = {}  # draws that are there -> captions of each image
            for image, of in enumerate(sets):
                open_sets = (each for index, each in enumerate(of) if index not in found[image])
                for text in dict.fromkeys(text for each in open_sets for text in each.captions):
                    there = len(known[image].get(text, ()))
                    if there < look:
                        missing.setdefault(there, [[] for _ in sets])[image].append(text)
            for there, wanted in missing.items():
                more = self._measured(latents, keys, wanted, range(there, look))
                for image, losses in enumerate(more):
                    for text, each in losses.items():
                        known[image][text] = np.concatenate([known[image].get(text, each[:0]), each])
            for image, of in enumerate(sets):
                for index, each_set in enumerate(of):
                    if index not in found[image]:
                        losses_of = _of(each_set, known[image], look)
                        if (sure := settled(losses_of, self.settle)) or look == self.draws:
                            found[image][index] = Evidence(each_set, losses_of, sure)
            if look == self.draws or all(len(done) == len(of) for done, of in zip(found, sets, strict=True)):
                return [[done[index] for index in range(len(done))] for done in found]
            look = min(2 * look, self.draws)

    def _measured(
        self, latents: Tensor, keys: Array, wanted: Sequence[Sequence[str]], draws: range
    ) -> list[Known]:
        """The losses (n,) of the captions that are wanted of each image."""
        images = [index for index, texts in enumerate(wanted) if texts]
        if not images or not draws:
            return [{text: np.zeros(0, np.float32) for text in texts} for texts in wanted]
        teacher, double = self.teacher, self.teacher.dtype == torch.float64
        if self._part.snapshot is not None:
            self._part.snapshot.check()
        texts = {text: row for row, text in enumerate(dict.fromkeys(t for of in wanted for t in of))}
        pairs = [(row, texts[text]) for row, image in enumerate(images) for text in wanted[image]]
        latents = latents[images].detach().to(teacher.device, torch.float64 if double else torch.float32)
        plan = DrawPlan(
            self.seed,
            draws.stop,
            tuple(latents.shape[1:]),
            0,
            timestep_range=self.timestep_range or (0, len(teacher.schedule)),
        )
        timesteps, noise, _ = plan.draw(keys[images]).tensors(latents)
        encoded = self._encoded(list(texts)).to(latents)
        start = draws.start
        found = self._core.losses(
            latents, noise[:, start:], timesteps[:, start:], encoded, np.array(pairs, np.int64)
        )
        rows = iter(found.cpu().numpy())
        losses = [{text: next(rows) for text in of} for of in wanted]
        for key, of_image in zip(keys.tolist(), losses, strict=True):
            for text, each in of_image.items():
                if not np.isfinite(each).all():
                    raise DataError(f"the loss of sample {key} under {shown(text)} is not finite")
        return losses

    def _encoded(self, texts: list[str]) -> Tensor:
        """Text tokens (M, L, C), of which those of the last captions are kept."""
        new = [text for text in texts if text not in self._texts]
        if new:
            tokens = (self.teacher.texts if self.encode is None else self.encode)(new)
            width = self.teacher.condition_width
            if tokens.ndim != 3 or len(tokens) != len(new) or tokens.shape[-1] != width:
                raise ShapeError(f"encode gave {tuple(tokens.shape)}, expected ({len(new)}, L, {width})")
            self._texts.update(zip(new, tokens.detach(), strict=True))
        chosen = torch.stack([self._texts[text] for text in texts])
        for text in texts:
            self._texts.move_to_end(text)
        while len(self._texts) > _TEXTS:
            self._texts.popitem(last=False)
        return chosen


def _of(each: ContrastSet, known: Known, draws: int | None = None) -> Array:
    """The losses (K, n) of a contrast set."""
    return np.stack([known[text][:draws] for text in each.captions])


def _parts(images: int) -> Iterator[slice]:
    return (slice(start, start + _IMAGES) for start in range(0, images, _IMAGES))


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
