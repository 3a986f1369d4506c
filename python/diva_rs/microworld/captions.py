"""Captions of scenes, and the tokenizer that reads them.

A short caption names the object and sometimes an attribute, as captions of the web do: this makes the tiny
CLIP blind. A detailed caption names everything: the tiny diffusion model is trained on these.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diva_rs.captions.vocabulary import Attribute, Vocabulary
from diva_rs.errors import DataError, shown
from diva_rs.microworld.scenes import PATTERNS, VALUES, Scene, checked_attribute

# Two words per attribute: which attribute, and which value.
_PHRASES = {
    "direction": "pointing {}",
    "border": "edge {}",
    "fill": "drawn {}",
    "count": "numbering {}",
    "position": "letter {}",
    "colour": "coloured {}",
    "texture": "ground {}",
    "glyph": "marked {}",
    "size": "seen {}",
}
DETAILS = tuple(_PHRASES)  # the attributes that a caption may leave out

START, END, PAD = "<start>", "<end>", "<pad>"


def caption(scene: Scene, details: Iterable[str] = ()) -> str:
    """``a photo of a <object>``, and a phrase for each attribute in ``details``, in their order.

    >>> caption(Scene(object=3, colour=2, count=1), ["count", "colour"])
    'a photo of a fish numbering two coloured blue'
    """
    phrases = [_PHRASES[name].format(scene.value(name)) for name in map(checked_attribute, details)]
    name = scene.value("object")
    article = "an" if name[0] in "aeiou" else "a"
    return " ".join([f"a photo of {article} {name}", *phrases])


def vocabulary() -> Vocabulary:
    """The world's words, which make the captions of `caption`; the subjects are the objects.

    >>> values = {"subject": "fish", "count": "two", "colour": "blue"}
    >>> vocabulary().caption(values, ["count", "colour"])
    'a photo of a fish numbering two coloured blue'
    """
    pattern = {attribute: name for name, attribute in PATTERNS.items()}
    words = {name: Attribute(VALUES[name], _PHRASES[name], pattern=pattern[name]) for name in DETAILS}
    return Vocabulary(words, subjects=VALUES["object"])


def short_caption(scene: Scene, share: float | Mapping[str, float], key: Sequence[int]) -> str:
    """The object, and each attribute with its probability or that of all; ``key`` decides which.

    >>> short_caption(Scene(), 0, (0, 1))
    'a photo of an arrow'
    >>> short_caption(Scene(count=1), {**dict.fromkeys(DETAILS, 0), "count": 1}, (0, 1))
    'a photo of an arrow numbering two'
    """
    limits = np.array([share[name] for name in DETAILS]) if isinstance(share, Mapping) else share
    return caption(scene, np.array(DETAILS)[_chances(key) < limits].tolist())


def detailed_caption(scene: Scene, key: Sequence[int]) -> str:
    """The object and all nine attributes, in an order that ``key`` decides.

    >>> len(detailed_caption(Scene(), (0, 1)).split())
    23
    """
    return caption(scene, np.array(DETAILS)[np.argsort(_chances(key))].tolist())


class Tokenizer:
    """Words to token ids (N, L) int64: start, words, end, zeros; called as open_clip's are.

    The end token has the highest id: open_clip's text tower reads a caption's embedding there. An unknown
    word and too many words raise DataError. ``words`` are by default the world's.

    >>> tokenizer = Tokenizer()
    >>> tokenizer(["a photo of a fish", ""]).shape, tokenizer.vocab_size
    (torch.Size([2, 26]), 57)
    >>> Tokenizer(4, ["cat", "dog"])("dog")
    tensor([[3, 2, 4, 0]])
    """

    def __init__(self, context_length: int = 26, words: Iterable[str] | None = None) -> None:
        if words is None:
            words = ["a", "an", "photo", "of", *(phrase.split()[0] for phrase in _PHRASES.values())]
            words += [word for values in VALUES.values() for word in values]
        self.ids = {word: number for number, word in enumerate([PAD, *dict.fromkeys(words), START, END])}
        self.context_length = context_length
        self.vocab_size = len(self.ids)

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        length = context_length or self.context_length
        texts = [texts] if isinstance(texts, str) else texts
        ids = torch.zeros(len(texts), length, dtype=torch.int64, device="cpu")
        for row, text in zip(ids, texts, strict=True):
            words = [START, *str(text).rstrip(" .").split(), END]
            unknown = [word for word in words if word not in self.ids]
            if unknown:
                raise DataError(
                    f"{shown(unknown[0])} in {shown(text)} is not among the tokenizer's {len(self.ids)} words"
                )
            if len(words) > length:
                raise DataError(f"{shown(text)} has {len(words) - 2} words, at most {length - 2} fit")
            row[: len(words)] = torch.tensor([self.ids[word] for word in words], device="cpu")
        return ids


def _chances(key: Sequence[int]) -> Any:
    """A number in [0, 1) for each detail: the raw words of Philox keyed by two numbers."""
    words = np.random.Philox(key=np.array(key, np.uint64)).random_raw(len(DETAILS))
    return (words >> np.uint64(11)) / float(1 << 53)
