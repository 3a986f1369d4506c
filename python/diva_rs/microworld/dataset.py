"""What pretraining, post-training and evaluation need of a dataset, and the microworld as such a dataset."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from diva_rs._base.arguments import takes
from diva_rs._base.kinds import each
from diva_rs._base.settings import choice, integer, number
from diva_rs.errors import ConfigError, shown
from diva_rs.microworld.captions import Tokenizer, detailed_caption, short_caption
from diva_rs.microworld.rendering import render
from diva_rs.microworld.scenes import SCENE, VALUES, Scene, scene


class Captioned(Protocol):
    """Images with captions and attribute labels. Another source that has these can take the world's place.

    Attributes:
        values: attribute -> the words for its values.
        subject: the attribute that every caption names, which zero-shot classification and the DiT know.
        first: number of the first item among all that there are: item n draws its noise as ``first + n``.
    """

    values: Mapping[str, Sequence[str]]
    subject: str
    first: int

    def __len__(self) -> int: ...

    def images(self, numbers: Sequence[int]) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1]."""
        ...

    def tokenizer(self, texts: Sequence[str]) -> Tensor:
        """Ids (N, L) int64 of captions, the end token the highest, padding 0."""
        ...

    def labels(self, numbers: Sequence[int]) -> Tensor:
        """(B, attributes) int64: value indices in the order of ``values``."""
        ...

    def captions(self, numbers: Sequence[int], share: float, epoch: int = 0) -> list[str]:
        """Short captions: the subject, and each other attribute with probability ``share``."""
        ...

    def detailed_captions(self, numbers: Sequence[int], epoch: int = 0) -> list[str]:
        """Captions that name everything."""
        ...


# First index and length of each split. A scene is a function of (seed, index), so disjoint ranges cannot
# share one, and two indices that happen to draw the same attributes still differ in what no caption names.
SPLITS: dict[str, tuple[int, int]] = {
    "train": (0, 1 << 24),
    "validation": (1 << 24, 1 << 20),
    "test": (1 << 25, 1 << 20),
}

_NUMBERS = each(integer(0), "scene numbers")
_EPOCH = integer(0, (1 << 63) - 1)


class World:
    """``size`` scenes of a split from ``start`` on, each the same on every machine.

    Args:
        split: ``"train"``, ``"validation"`` or ``"test"``: disjoint ranges of scene numbers.
        size: how many scenes.
        seed: of the world.
        start: of the split's scenes, which one is this world's number 0.

    Raises:
        ConfigError: an unknown split, or more scenes than it has.

    >>> world = World("train", 4)
    >>> world.images([0, 2]).shape, world.labels([0, 2]).shape
    (torch.Size([2, 3, 48, 48]), torch.Size([2, 10]))
    """

    values: Mapping[str, Sequence[str]] = VALUES
    subject = "object"
    tokenizer = Tokenizer()

    # Captions draw from `_key`, a word of 64 bits.
    @takes(split=choice(*SPLITS), size=integer(1), seed=integer(0, (1 << 51) - 1), start=integer(0))
    def __init__(self, split: str, size: int, seed: int = 0, start: int = 0) -> None:
        first, most = SPLITS[split]
        if start >= most:
            raise ConfigError(f"start={shown(start)}: split {split!r} has scenes 0 to {most - 1}")
        if size > most - start:
            raise ConfigError(
                f"size={shown(size)}: split {split!r} has 1 to {most - start} scenes from {start} on"
            )
        self.first = first + start
        self.split, self.size, self.seed = split, size, seed

    def __len__(self) -> int:
        return self.size

    @takes(number=integer(0))
    def scene(self, number: int) -> Scene:
        """Scene ``number`` of this world, from 0.

        Raises:
            ConfigError: there is no such scene.
        """
        if number >= self.size:
            raise ConfigError(f"number={shown(number)}: the world has {self.size} scenes, counted from 0")
        return scene(self.seed, self.first + number)

    @takes(numbers=_NUMBERS)
    def images(self, numbers: Sequence[int]) -> Tensor:
        """Pictures (B, 3, 48, 48) float32 in [0, 1].

        >>> World("test", 1).images([0]).min() >= 0
        tensor(True)
        """
        return pictures([self.scene(number) for number in numbers])

    @takes(numbers=_NUMBERS)
    def labels(self, numbers: Sequence[int]) -> Tensor:
        """Value indices (B, 10) int64, in the order of `VALUES`.

        >>> World("test", 3).labels(range(3)).dtype
        torch.int64
        """
        return torch.tensor([self.scene(number).labels() for number in numbers], dtype=torch.int64)

    @takes(numbers=_NUMBERS, share=number(0, 1), epoch=_EPOCH)
    def captions(self, numbers: Sequence[int], share: float, epoch: int = 0) -> list[str]:
        """Short captions: the object, and each attribute with probability ``share``.

        >>> World("train", 8).captions([7], 0.0)
        ['a photo of a flag']
        """
        return [short_caption(self.scene(number), share, self._key(number, epoch)) for number in numbers]

    @takes(numbers=_NUMBERS, epoch=_EPOCH)
    def detailed_captions(self, numbers: Sequence[int], epoch: int = 0) -> list[str]:
        """Captions that name the object and all nine attributes, each time in another order.

        >>> len(World("train", 1).detailed_captions([0])[0].split())
        23
        """
        return [detailed_caption(self.scene(number), self._key(number, epoch)) for number in numbers]

    @takes(batch=integer(1))
    def batches(self, batch: int) -> Iterator[dict[str, Any]]:
        """The images with their scene numbers as ids, in order, as `diva_rs.post_train` takes them.

        >>> [len(batch["ids"]) for batch in World("train", 5).batches(2)]
        [2, 2, 1]
        """
        for start in range(0, self.size, batch):
            numbers = range(start, min(start + batch, self.size))
            yield {"images": self.images(numbers), "ids": [self.first + number for number in numbers]}

    def _key(self, number: int, epoch: int) -> tuple[int, int]:
        # The scene itself draws from (seed, index): captions take a seed that no world has.
        return (1 << 63) + self.seed * 4096 + epoch % 4096, self.first + number


@takes(scenes=each(SCENE, "scenes", least=1))
def pictures(scenes: Sequence[Scene]) -> Tensor:
    """Scenes as (B, 3, 48, 48) float32 in [0, 1].

    >>> pictures([Scene(), Scene(colour=1)]).shape
    torch.Size([2, 3, 48, 48])
    """
    stacked = np.stack([render(scene) for scene in scenes])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255
