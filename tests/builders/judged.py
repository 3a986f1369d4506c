"""Judgements of images, as a diffusion model would make them."""

from typing import Any

import numpy as np

from diva_rs.captions import ContrastSet, Evidence, Judgements, Verdict, Vocabulary


def vocabulary() -> Vocabulary:
    """Two subjects and three attributes."""
    words = {"colour": ["red", "blue", "green"], "size": ["big", "small"], "state": ["open", "shut"]}
    return Vocabulary(words, subjects=("cat", "dog"))


def judged(images: int = 8, missing: tuple[int, ...] = ()) -> Judgements:
    """Of the images 0, 1, ..., but for those missing: image i shows word i of every set, counted round."""
    words = vocabulary()
    evidence = {}
    for key in sorted({*range(images)} - {*missing}):
        values = {name: words.words(name)[key % len(words.words(name))] for name in words.names()}
        sets = [words.set_of(name, values) for name in words.names()]
        evidence[key] = [Evidence(one, _losses(one, key)) for one in sets]
    return Judgements(evidence, words)


def _losses(one: ContrastSet, key: int) -> Any:
    """(K, 4): clearly lowest for the caption of the image's word."""
    rng = np.random.default_rng(key)
    right = np.arange(len(one)) == key % len(one)
    return (0.9 - 0.1 * right)[:, None] + 0.01 * rng.standard_normal((len(one), 4))


class Given(dict[int, tuple[Verdict, ...]]):
    """Judgements with these verdicts by key."""

    vocabulary = None

    def values(self, key: int) -> dict[str, str]:  # type: ignore[override]
        return {one.set.name: one.set.words[one.best] for one in self[key] if one.weight > 0}


def verdict(captions: list[str], posterior: list[float], weight: float = 1.0) -> Verdict:
    """The verdict on captions whose last words differ."""
    one = ContrastSet("last", tuple(captions), tuple(caption.split()[-1] for caption in captions))
    likely = np.array(posterior, np.float64)
    return Verdict(one, 1 - likely, likely, 4, True, weight)


def given() -> Given:
    """Sets of two and three captions of the images 10 to 13: some posteriors hold zeros, and no set of image
    13 has a weight."""
    place = ["a cup on the left", "a cup on the right"]
    colour = ["a red cup", "a cup of blue", "a cup of green"]
    return Given(
        {
            10: (verdict(place, [0.8, 0.2]), verdict(colour, [0.0, 1.0, 0.0], 0.5)),
            11: (verdict(colour, [0.2, 0.3, 0.5]),),
            12: (verdict(place, [0.0, 1.0], 0.25), verdict(place[::-1], [0.6, 0.4], 0.0)),
            13: (verdict(colour, [0.3, 0.3, 0.4], 0.0),),
        }
    )
