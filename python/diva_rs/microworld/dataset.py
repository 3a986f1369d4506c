"""The microworld as a dataset: images, captions and labels of scenes, in splits that share no scene."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diva_rs.errors import ConfigError, shown
from diva_rs.microworld.captions import Tokenizer, detailed_caption, short_caption, vocabulary
from diva_rs.microworld.rendering import render
from diva_rs.microworld.scenes import VALUES, Scene, scene

# First index and length of each split. A scene is a function of (seed, index), so disjoint ranges cannot
# share one, and two indices that happen to draw the same attributes still differ in what no caption names.
SPLITS: dict[str, tuple[int, int]] = {
    "train": (0, 1 << 24),
    "validation": (1 << 24, 1 << 20),
    "test": (1 << 25, 1 << 20),
}


class World:
    """``size`` scenes of a split from its scene ``start`` on, each the same on every machine.

    The splits ``"train"``, ``"validation"`` and ``"test"`` are disjoint ranges of scene numbers.

    >>> world = World("train", 4)
    >>> world.images([0, 2]).shape, world.labels([0, 2]).shape
    (torch.Size([2, 3, 48, 48]), torch.Size([2, 10]))
    """

    values: Mapping[str, Sequence[str]] = VALUES
    subject = "object"
    tokenizer = Tokenizer()
    vocabulary = vocabulary()

    def __init__(self, split: str, size: int, seed: int = 0, start: int = 0) -> None:
        if split not in SPLITS:
            raise ConfigError(f"split={shown(split)}: one of {', '.join(SPLITS)} is needed")
        first, most = SPLITS[split]
        if not 0 <= start < most:
            raise ConfigError(f"start={start}: split {split!r} has scenes 0 to {most - 1}")
        if not 1 <= size <= most - start:
            raise ConfigError(f"size={size}: split {split!r} has 1 to {most - start} scenes from {start} on")
        if not 0 <= seed < 1 << 51:  # `_key` has 64 bits
            raise ConfigError(f"seed={seed}: a seed from 0 to 2**51 - 1 is needed")
        self.first = first + start
        self.split, self.size, self.seed = split, size, seed

    def __len__(self) -> int:
        return self.size

    def scene(self, number: int) -> Scene:
        """Scene ``number`` of this world, from 0."""
        if not 0 <= number < self.size:
            raise ConfigError(f"number={number}: the world has {self.size} scenes, counted from 0")
        return scene(self.seed, self.first + number)

    def images(self, numbers: Sequence[int]) -> Tensor:
        """Pictures (B, 3, 48, 48) float32 in [0, 1]."""
        return pictures([self.scene(number) for number in numbers])

    def labels(self, numbers: Sequence[int]) -> Tensor:
        """Value indices (B, 10) int64, in the order of `VALUES`."""
        labels = [self.scene(number).labels() for number in numbers]
        return torch.tensor(labels, dtype=torch.int64, device="cpu")

    def captions(
        self, numbers: Sequence[int], share: float | Mapping[str, float], epoch: int = 0
    ) -> list[str]:
        """Short captions: the object, and each attribute with its probability or that of all.

        >>> World("train", 8).captions([7], 0.0)
        ['a photo of a flag']
        """
        return [short_caption(self.scene(number), share, self._key(number, epoch)) for number in numbers]

    def detailed_captions(self, numbers: Sequence[int], epoch: int = 0) -> list[str]:
        """Captions that name the object and all nine attributes, in an order of each scene and epoch."""
        return [detailed_caption(self.scene(number), self._key(number, epoch)) for number in numbers]

    def batches(self, batch: int) -> Iterator[dict[str, Any]]:
        """The images in order, with their scene numbers as ids, as `diva_rs.post_train` takes them.

        >>> [len(batch["ids"]) for batch in World("train", 5).batches(2)]
        [2, 2, 1]
        """
        for start in range(0, self.size, batch):
            numbers = range(start, min(start + batch, self.size))
            yield {"images": self.images(numbers), "ids": [self.first + number for number in numbers]}

    def _key(self, number: int, epoch: int) -> tuple[int, int]:
        # The scene itself draws from (seed, index): captions take a seed that no world has.
        return (1 << 63) + self.seed * 4096 + epoch % 4096, self.first + number


def pictures(scenes: Sequence[Scene]) -> Tensor:
    """Scenes as (B, 3, 48, 48) float32 in [0, 1].

    >>> pictures([Scene(), Scene(colour=1)]).shape
    torch.Size([2, 3, 48, 48])
    """
    stacked = np.stack([render(scene) for scene in scenes])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255
