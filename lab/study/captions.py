"""Caption feedback in the study: the teacher's judgements of the training images, and their controls."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from torch import nn

from diva_rs.captions import (
    CaptionTerm,
    Evidence,
    Guesses,
    Judge,
    Judgements,
    KeepTerm,
    Vocabulary,
    WrittenTerm,
)
from diva_rs.step.terms import Term
from lab.pretraining.data import words_of
from lab.study.data import TrainingImages
from lab.world import StudyWorld

SUBJECT = Vocabulary.SUBJECT
Values = Mapping[int, Mapping[str, str]]
"""Image number -> name -> word."""


@dataclass(frozen=True)
class Captions:
    """How captions train a CLIP in one arm.

    Attributes:
        labels: "judged"; the control "guessed": CLIP's own guesses; or the ceiling: "true".
        mixed: share of the images that have the judgements of the next image; 1: a control.
        weight: of the captions' term.
        keep: weight of `KeepTerm` over the names of the subjects.
        sets: most contrast sets of an image in a step.
        context: the probability that captions say another judged value.
        written: whether CLIP's contrastive loss over written captions replaces the posteriors.
    """

    labels: str = "judged"
    mixed: float = 0.0
    weight: float = 1.0
    keep: float = 1.0
    sets: int = 9
    context: float = 0.0
    written: bool = False

    def terms(
        self, clip: nn.Module, images: TrainingImages, judged: Judgements, seed: int
    ) -> dict[str, tuple[float, Term]]:
        """The terms of the loss. Each image's subject is what this CLIP finds by zero-shot."""
        guesses = guessed(clip, images)
        labels, tokenizer = self._labels(images, judged, guesses), images.dataset.tokenizer
        term: Term = (
            WrittenTerm(labels, clip, tokenizer, share=self.context, seed=seed)
            if self.written
            else CaptionTerm(labels, clip, tokenizer, self.sets, self.context, seed=seed)
        )
        words = images.dataset.vocabulary
        names = [words.caption({SUBJECT: word}) for word in words.subjects]
        keep = {"keep": (self.keep, KeepTerm(clip, tokenizer, names))} if self.keep else {}
        return {"captions": (self.weight, term), **keep}

    def _labels(self, images: TrainingImages, judged: Judgements, guesses: Values) -> Judgements:
        given = {key: {SUBJECT: values[SUBJECT]} for key, values in guesses.items()}
        evidence = dict(judged.evidence)
        if self.labels != "judged":
            values = guesses if self.labels == "guessed" else truth(images)
            evidence = {key: certain(each, images.dataset.vocabulary) for key, each in values.items()}
        keys = list(evidence)
        others = dict(zip(keys, [*keys[1:], keys[0]], strict=True))
        mixed = {key for key in keys if Random(key).random() < self.mixed}
        evidence = {key: evidence[others[key] if key in mixed else key] for key in keys}
        return Judgements(evidence, images.dataset.vocabulary, given=given)


def judge_images(world: StudyWorld, images: TrainingImages, folder: Path, kind: str = "unet") -> Judgements:
    """The judgements of the images by a teacher, from the guesses of the first CLIP; kept in ``folder``.

    The subject stays what that CLIP guessed: it is what CLIPs know, and what this teacher does not.
    """
    if not folder.exists():
        judge = Judge(world.teacher(kind), draws=4, encode=world.encode)
        guesses = guessed(world.clip(0), images)
        latents, start = images.latents, [guesses[key] for key in keys_of(images)]
        judge.describe(latents, keys_of(images), images.dataset.vocabulary, start).save(folder)
    return Judgements.load(folder)


def keys_of(images: TrainingImages) -> list[int]:
    """The sample keys: the numbers of the scenes."""
    return [images.dataset.first + number for number in range(len(images.pixels))]


def guessed(clip: nn.Module, images: TrainingImages) -> dict[int, dict[str, str]]:
    """CLIP's own guess of every value."""
    guesses, keys = Guesses(clip, images.dataset.tokenizer, images.dataset.vocabulary), keys_of(images)
    parts = (range(start, min(start + 256, len(keys))) for start in range(0, len(keys), 256))
    found = (guesses(images.pixels[part]) for part in parts)
    return dict(zip(keys, chain.from_iterable(found), strict=True))


def truth(images: TrainingImages) -> dict[int, dict[str, str]]:
    """The true value of every attribute."""
    return dict(zip(keys_of(images), words_of(images.dataset), strict=True))


def certain(values: Mapping[str, str], vocabulary: Vocabulary) -> tuple[Evidence, ...]:
    """Evidence that leaves no doubt of these values."""
    found = []
    for name in vocabulary.attributes:
        each = vocabulary.set_of(name, values)
        wrong = np.array([word != values[name] for word in each.words], np.float64)
        found.append(Evidence(each, np.stack([wrong, wrong], axis=1), settled=True))
    return tuple(found)


def accuracy(judged: Judgements, images: TrainingImages) -> dict[str, Any]:
    """Of each attribute: how many judgements are right, what was estimated without labels, draws used."""
    right = truth(images)
    table = {}
    for name in images.dataset.vocabulary.attributes:
        sets = [(key, each) for key in judged for each in judged[key] if each.set.name == name]
        hits = [each.set.words[each.best] == right[key][name] for key, each in sets]
        found = judged.reliability[name]
        table[name] = {
            "accuracy": 100 * float(np.mean(hits)),
            "estimated": 100 * found.accuracy,
            "chance": 100 * found.chance,
            "weight": found.weight,
            "draws": float(np.mean([each.draws for _, each in sets])),
            "settled": 100 * float(np.mean([each.settled for _, each in sets])),
        }
    return table


def calibration(judged: Judgements, images: TrainingImages, bins: int = 10) -> list[tuple[float, float, int]]:
    """A reliability diagram of the weighted sets: mean probability of the best word, share right, sets."""
    right = truth(images)
    rows = [
        (float(each.posterior.max()), each.set.words[each.best] == right[key][each.set.name])
        for key in judged
        for each in judged[key]
        if each.weight > 0
    ]
    likely, hits = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    places = np.minimum((likely * bins).astype(int), bins - 1)
    return [
        (float(likely[places == one].mean()), float(hits[places == one].mean()), int((places == one).sum()))
        for one in range(bins)
        if (places == one).any()
    ]
