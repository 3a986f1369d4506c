"""What the lab needs of a dataset; its images, rendered once and kept as bytes; the images of a step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from diva_rs.captions import Vocabulary


class Images(Protocol):
    """Images by their numbers."""

    def __len__(self) -> int: ...

    # (B, 3, H, W) float32 in [0, 1].
    def images(self, numbers: Sequence[int]) -> Tensor: ...


class Captioned(Images, Protocol):
    """Images with captions and attribute labels. Another source with these members can replace the world.

    Attributes:
        values: attribute -> the words for its values; an empty word: the attribute does not apply.
        subject: the attribute that every caption names; zero-shot classification asks for it.
        vocabulary: its attributes are those of ``values`` but the subject, its subjects those of the subject.
        first: number of the first item among all items: item n draws its noise as ``first + n``.
    """

    values: Mapping[str, Sequence[str]]
    subject: str
    vocabulary: Vocabulary
    first: int

    # Ids (N, L) int64 of captions, the end token the highest, padding 0.
    def tokenizer(self, texts: Sequence[str]) -> Tensor: ...

    # (B, attributes) int64: value indices in the order of ``values``.
    def labels(self, numbers: Sequence[int]) -> Tensor: ...

    # The subject, and each other attribute with its probability or that of all.
    def captions(
        self, numbers: Sequence[int], share: float | Mapping[str, float], epoch: int = 0
    ) -> list[str]: ...

    # Everything that applies.
    def detailed_captions(self, numbers: Sequence[int], epoch: int = 0) -> list[str]: ...


def words_of(dataset: Captioned) -> list[dict[str, str]]:
    """For each item the value of every attribute: name -> word, the subject as ``"subject"``.

    >>> from diva_rs.microworld import World
    >>> words_of(World("train", 1))[0]["subject"]
    'arrow'
    """
    names = [Vocabulary.SUBJECT if name == dataset.subject else name for name in dataset.values]
    words = [list(of) for of in dataset.values.values()]
    return [
        {name: of[value] for name, of, value in zip(names, words, row, strict=True)}
        for row in dataset.labels(range(len(dataset))).tolist()
    ]


class Pixels:
    """The images of ``dataset`` as uint8 (N, 3, H, W): 7 KB for an image of 48 x 48.

    >>> from diva_rs.microworld import World
    >>> Pixels(World("train", 4))[[0, 2]].shape
    torch.Size([2, 3, 48, 48])
    """

    def __init__(self, dataset: Images, chunk: int = 1024) -> None:
        parts = []
        for start in range(0, len(dataset), chunk):
            numbers = range(start, min(start + chunk, len(dataset)))
            parts.append((dataset.images(numbers) * 255).round().to(torch.uint8))
        self.bytes = torch.cat(parts)

    def __getitem__(self, numbers: Sequence[int]) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1]."""
        return self.bytes[torch.as_tensor(list(numbers))].float() / 255

    def __len__(self) -> int:
        return len(self.bytes)


class Remembered:
    """Pictures of items, made once and kept as bytes: (B, 3, H, W) float32 in [0, 1].

    >>> made = []
    >>> shown = Remembered(lambda items: made.extend(items) or torch.zeros(len(items), 3, 4, 4))
    >>> shown(["a", "b"]).shape, shown(["b", "c"]).dtype, made
    (torch.Size([2, 3, 4, 4]), torch.float32, ['a', 'b', 'c'])
    """

    def __init__(self, pictures: Callable[[Sequence[Any]], Tensor]) -> None:
        self.pictures = pictures
        self._made: dict[Any, Tensor] = {}

    def __call__(self, items: Sequence[Any]) -> Tensor:
        missing = [item for item in items if item not in self._made]
        if missing:
            made = (self.pictures(missing) * 255).round().to(torch.uint8)
            self._made.update(zip(missing, made, strict=True))
        return torch.stack([self._made[item] for item in items]).float() / 255


def batch_numbers(size: int, batch: int, step: int, seed: int) -> tuple[list[int], int]:
    """The image numbers of a step, and its epoch; each epoch has another order.

    A dataset smaller than the batch is one batch.

    >>> sum((batch_numbers(6, 2, step, seed=0)[0] for step in range(3)), []) != list(range(6))
    True
    """
    batch = min(batch, size)
    per_epoch = size // batch
    epoch, place = divmod(step, per_epoch)
    order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(size)
    return order[place * batch : (place + 1) * batch].tolist(), epoch
