"""Does the teacher draw what its captions name? Images under detailed captions, read by a classifier."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs._base.optional import require
from diva_rs.microworld.models import new_scheduler
from lab.pretraining.data import Captioned, Pixels, batch_numbers
from lab.pretraining.loop import NOTHING, Keep, Progress, cosine, set_rate


@torch.no_grad()
def generate(
    world: Any, captions: Sequence[str], guidance: float = 3.0, steps: int = 50, seed: int = 0
) -> Tensor:
    """One image per caption: DDIM (arXiv 2010.02502) with classifier-free guidance.

    Args:
        world: of the UNet, its text encoder and the VAE.
        captions: N of them.
        guidance: the scale of the difference between caption and empty text; 1: none.
        steps: of the sampler.
        seed: of the starting noise.

    Returns:
        (N, 3, H, W) float32 in [0, 1].
    """
    scheduler = require("diffusers", extra="diffusers").DDIMScheduler.from_config(
        new_scheduler().config, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(steps)
    config = world.unet.config
    shape = (len(captions), config.in_channels, config.sample_size, config.sample_size)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    parts = []
    for batch, texts in zip(torch.split(latents, 64), _chunks(captions, 64), strict=True):
        states = torch.cat([world.encode(texts), world.encode([""]).expand(len(texts), -1, -1)])
        for timestep in scheduler.timesteps:
            both = world.unet(torch.cat([batch, batch]), timestep, states).sample
            right, empty = both.chunk(2)
            batch = scheduler.step(empty + guidance * (right - empty), timestep, batch).prev_sample
        images: Tensor = world.vae.decode(batch / world.vae.config.scaling_factor).sample
        parts.append((images / 2 + 0.5).clamp(0, 1))
    return torch.cat(parts)


class Classifier(nn.Module):
    """A small convolutional network that reads every attribute of an image.

    ``sizes`` holds the number of values of each attribute; the result has a list of logits (B, size).

    >>> [logits.shape[1] for logits in Classifier([8, 4], side=48)(torch.zeros(2, 3, 48, 48))]
    [8, 4]
    """

    def __init__(self, sizes: Sequence[int], side: int, width: int = 32) -> None:
        super().__init__()
        self.sizes = list(sizes)
        layers: list[nn.Module] = []
        inner = 3
        for channels in (width, 2 * width, 4 * width):
            layers += [nn.Conv2d(inner, channels, 3, stride=2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
            layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
            inner = channels
        flat = inner * (side // 8) ** 2
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, 256), nn.ReLU())
        self.head = nn.Linear(256, sum(self.sizes))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Logits of each attribute for images (B, 3, H, W) in [0, 1]."""
        return list(self.head(self.layers(images * 2 - 1)).split(self.sizes, 1))


class Decoded:
    """The images of ``dataset`` after the VAE: a generated image has passed its decoder, too."""

    def __init__(self, dataset: Captioned, vae: Any) -> None:
        self.dataset, self.vae = dataset, vae

    def __len__(self) -> int:
        return len(self.dataset)

    @torch.no_grad()
    def images(self, numbers: Sequence[int]) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1]."""
        latents = self.vae.encode(self.dataset.images(numbers) * 2 - 1).latent_dist.mean
        images: Tensor = self.vae.decode(latents).sample
        return (images / 2 + 0.5).clamp(0, 1)


def train_reader(
    reader: Classifier,
    dataset: Captioned,
    views: Sequence[Pixels],
    steps: int,
    batch: int = 128,
    lr: float = 2e-3,
    seed: int = 0,
    keep: Keep = NOTHING,
) -> dict[str, float]:
    """Train on the images of ``dataset``, with a cross-entropy per attribute.

    Args:
        reader: what trains.
        dataset: has the labels.
        views: its images, and their reconstructions (`Decoded`); the steps take them in turn.
        steps, batch, lr: of AdamW, with a cosine.
        seed: of the orders.
        keep: the checkpoints.

    Returns:
        the last running mean: "loss".
    """
    labels = dataset.labels(range(len(dataset)))
    optimizer = torch.optim.AdamW(reader.parameters(), lr=lr, weight_decay=0.05)
    progress = Progress("reader", steps)
    reader.train()
    for step in keep.steps(progress, model=reader, optimizer=optimizer):
        numbers, _ = batch_numbers(len(dataset), batch, step, seed)
        images = views[step % len(views)][numbers]
        truth = labels[torch.tensor(numbers)]
        losses = [nn.functional.cross_entropy(*pair) for pair in zip(reader(images), truth.T, strict=True)]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        set_rate(optimizer, lr * cosine(steps)(step))
        optimizer.step()
        progress.update(step, loss=loss)
    reader.eval()
    return progress.last


@torch.no_grad()
def read(reader: Classifier, dataset: Captioned, images: Tensor) -> dict[str, float]:
    """Per attribute the percentage of ``images`` in which ``reader`` finds the value of ``dataset``.

    An attribute counts where it applies: where its word is not empty.
    """
    found = [torch.cat(parts) for parts in zip(*map(reader, torch.split(images, 256)), strict=True)]
    scores = {}
    truths = dataset.labels(range(len(images))).T
    for (name, words), logits, truth in zip(dataset.values.items(), found, truths, strict=True):
        applies = torch.tensor([bool(words[value]) for value in truth.tolist()])
        scores[name] = 100 * float((logits.argmax(1) == truth)[applies].float().mean())
    return scores


def _chunks(items: Sequence[str], size: int) -> list[Sequence[str]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
