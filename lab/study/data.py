"""The images of a post-training run: CLIP's pixels and the teacher's latents, computed once."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from diva_rs.microworld.dataset import World
from diva_rs.microworld.models import MEAN, STD
from lab.pretraining.data import Captioned, Pixels
from lab.pretraining.denoiser import encode
from lab.worlds import MicroworldData


def unseen(size: int) -> World:
    """Scenes of the train split that no pretraining has used."""
    return MicroworldData().feedback(size)


class TrainingImages:
    """The images of a dataset as `diva_rs.post_train` takes them.

    Args:
        vae: of the teacher.
        dataset: whose images.
    """

    def __init__(self, vae: Any, dataset: Captioned) -> None:
        self.dataset = dataset
        self.pixels = Pixels(dataset)
        self.latents = encode(vae, self.pixels)

    def loader(self, batch: int, seed: int, share: float = 1.0, mismatched: bool = False) -> "Batches":
        """Batches of a ``share`` of the images, in another order in each epoch.

        ``mismatched`` gives each image the latents of the next one: a control in which the feedback carries
        nothing about the image.
        """
        batch = min(batch, len(self.pixels))
        return Batches(self, batch, seed, max(batch, round(share * len(self.pixels))), mismatched)

    def latents_of(self, numbers: Tensor) -> Tensor:
        """(B, C, h, w), scaled."""
        return self.latents[numbers]


class Batches:
    """A loader over `TrainingImages`; see `TrainingImages.loader`."""

    def __init__(self, source: TrainingImages, batch: int, seed: int, size: int, mismatched: bool) -> None:
        self.source, self.batch, self.seed, self.size = source, batch, seed, size
        self.shift = 1 if mismatched else 0
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Change the order of the images."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // self.batch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        generator = torch.Generator().manual_seed(self.seed * 4096 + self.epoch)
        order = torch.randperm(self.size, generator=generator)
        for numbers in torch.split(order[: len(self) * self.batch], self.batch):
            yield {
                "pixel_values": (self.source.pixels[numbers.tolist()] - MEAN) / STD,
                "latents": self.source.latents_of((numbers + self.shift) % self.size),
                "ids": [self.source.dataset.first + number for number in numbers.tolist()],
            }
