"""How much each word of the condition lowers the denoising loss."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diva_rs.microworld.models import new_scheduler
from lab.pretraining.data import Captioned, words_of


@torch.no_grad()
def margins(unet: Any, encoder: Any, dataset: Captioned, latents: Tensor, draws: int = 4) -> dict[str, float]:
    """The denoising loss under other captions minus that under the right one, on the same noise.

    Args:
        unet, encoder: the denoiser and its text encoder.
        dataset: the images of ``latents``.
        latents: (N, C, h, w), scaled.
        draws: timesteps per image, evenly spread.

    Returns:
        "loss" under the right caption; "empty", "shuffled" (another image's caption), and per attribute the
        margin of a caption with that one word wrong, over the images to which the attribute applies.
    """
    scheduler, vocabulary, said = new_scheduler(), dataset.vocabulary, words_of(dataset)
    right = [vocabulary.caption(values) for values in said]
    every = list(range(len(said)))
    captions = {"loss": (every, right), "empty": (every, [""] * len(right))}
    captions["shuffled"] = (every, right[1:] + right[:1])
    for name, own in zip(dataset.values, said[0], strict=True):
        rows = [row for row in every if said[row][own]]
        words = [word for word in vocabulary.words(own) if word]
        wrong = []
        for number, row in enumerate(rows):
            word = _other(words, said[row][own], 1 + number % (len(words) - 1))
            wrong.append(vocabulary.caption({**said[row], own: word}))
        captions[name] = (rows, wrong)
    states = {
        name: encoder(dataset.tokenizer(texts)).last_hidden_state for name, (_, texts) in captions.items()
    }
    losses = {name: torch.zeros(len(rows)) for name, (rows, _) in captions.items()}
    generator = torch.Generator().manual_seed(0)
    train = len(scheduler.alphas_cumprod)
    for draw in range(draws):
        noise = torch.randn(latents.shape, generator=generator)
        place = (torch.rand(len(latents), generator=generator) + draw) / draws
        timesteps = (place * train).long().clamp(max=train - 1)
        target = scheduler.get_velocity(latents, noise, timesteps)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        for name, (rows, _) in captions.items():
            error = unet(noisy[rows], timesteps[rows], states[name]).sample - target[rows]
            losses[name] += error.square().flatten(1).mean(1) / draws
    of = {name: float((losses[name] - losses["loss"][rows]).mean()) for name, (rows, _) in captions.items()}
    return {**of, "loss": float(losses["loss"].mean())}


def _other(words: Sequence[str], word: str, step: int) -> str:
    return words[(words.index(word) + step) % len(words)]
