"""Along which directions a CLIP's embedding differs by an attribute, and whether its captions do too.

``python -m lab.study.directions FOLDER 0 1`` prints this for CLIPs 0 and 1 of a folder of the microworld, on
the validation split. Nothing is trained, and words are used for the comparison alone.
"""

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, one_hot

from diva_rs.microworld.models import image_embeddings, text_embeddings
from lab.pretraining.data import Captioned
from lab.world import StudyWorld
from lab.worlds import MicroworldData

RIDGE = 0.1  # in units of the embedding's mean variance


@dataclass(frozen=True)
class Direction:
    """Of one attribute, over its pairs.

    Attributes:
        images: mean cosine of the difference of the two images' embeddings and that of their captions.
        read: mean cosine of the difference of the attribute's two directions, as a ridge regression reads
            them from the embedding, and that of the captions.
        right: pairs right, in per cent.
        alone: pairs that would be right if the images differed along that direction alone, in per cent.
    """

    images: float
    read: float
    right: float
    alone: float


@torch.no_grad()
def directions(clip: Any, images: Captioned, per_pattern: int = 200) -> dict[str, Direction]:
    """Attribute -> its `Direction`; the regression is fitted on ``images``.

    >>> found = directions(diva_rs.microworld.new_clip(0), MicroworldData().feedback(64), per_pattern=2)
    >>> -1 <= found["border"].read <= 1
    True
    """
    embedded = image_embeddings(clip, images.images, range(len(images)))
    centred = embedded - embedded.mean(0)
    covariance = centred.T @ centred / len(centred)
    ridge = RIDGE * covariance.trace() / len(covariance) * torch.eye(len(covariance))
    data = MicroworldData()
    labels, names = images.labels(range(len(images))), list(images.values)
    pairs: dict[str, list[Any]] = {}
    for pair in data.pairs("validation", per_pattern):
        pairs.setdefault(pair.attribute, []).append(pair)
    found = {}
    for name, own in pairs.items():
        shown = image_embeddings(clip, data.pictures, [scene for pair in own for scene in pair.scenes])
        tokens = data.tokenizer([statement for pair in own for statement in pair.statements])
        texts = text_embeddings(clip, tokens).view(len(own), 2, -1)
        shown = shown.view(len(own), 2, -1)
        truth = one_hot(labels[:, names.index(name)], len(images.values[name])).float()
        read = torch.linalg.solve(covariance + ridge, centred.T @ (truth - truth.mean(0)) / len(truth)).T
        values = torch.tensor([[getattr(scene, name) for scene in pair.scenes] for pair in own])
        between, along = shown[:, 0] - shown[:, 1], read[values[:, 0]] - read[values[:, 1]]
        said = texts[:, 0] - texts[:, 1]
        found[name] = Direction(
            _cosine(between, said), _cosine(along, said), _right(between, texts), _right(along, texts)
        )
    return found


def _cosine(one: Tensor, other: Tensor) -> float:
    return cosine_similarity(one, other, dim=1).mean().item()


def _right(difference: Tensor, texts: Tensor) -> float:
    """Both captions prefer their own image: per cent."""
    first, second = (difference[:, None] * texts).sum(-1).unbind(1)
    return 100 * ((first > 0) & (second < 0)).float().mean().item()


if __name__ == "__main__":
    world = StudyWorld(sys.argv[1])
    fitted = world.data.feedback(8192)
    for number in map(int, sys.argv[2:]):
        for name, found in directions(world.clip(number), fitted).items():
            print(
                f"clip {number}, {name}: images {found.images:.2f}, read {found.read:.2f}, right "
                f"{found.right:.0f} %, alone {found.alone:.0f} %"
            )
