"""How much each word of the condition lowers the denoising loss."""

from typing import Any

import torch
from torch import Tensor

from diva_rs.microworld.captions import DETAILS, Tokenizer, caption
from diva_rs.microworld.dataset import World
from diva_rs.microworld.models import new_scheduler
from diva_rs.microworld.scenes import VALUES, changed


@torch.no_grad()
def margins(unet: Any, encoder: Any, world: World, latents: Tensor, draws: int = 4) -> dict[str, float]:
    """The denoising loss under other captions minus that under the right one, on the same noise.

    Args:
        unet, encoder: the denoiser and its text encoder.
        world: the scenes of ``latents``.
        latents: (N, C, h, w), scaled.
        draws: timesteps per image, evenly spread.

    Returns:
        "loss" under the right caption; "empty", "shuffled" (another scene's caption), and per attribute the
        margin of a caption with that one word wrong.
    """
    scheduler, tokenizer = new_scheduler(), Tokenizer()
    scenes = [world.scene(number) for number in range(len(latents))]
    right = [caption(scene, DETAILS) for scene in scenes]
    captions = {"loss": right, "empty": [""] * len(right), "shuffled": right[1:] + right[:1]}
    for attribute in VALUES:
        steps = [1 + n % (len(VALUES[attribute]) - 1) for n in range(len(scenes))]
        wrong = (changed(scene, attribute, step) for scene, step in zip(scenes, steps, strict=True))
        captions[attribute] = [caption(scene, DETAILS) for scene in wrong]
    states = {name: encoder(tokenizer(texts)).last_hidden_state for name, texts in captions.items()}
    sums = dict.fromkeys(captions, 0.0)
    generator = torch.Generator().manual_seed(0)
    train = len(scheduler.alphas_cumprod)
    for draw in range(draws):
        noise = torch.randn(latents.shape, generator=generator)
        place = (torch.rand(len(latents), generator=generator) + draw) / draws
        timesteps = (place * train).long().clamp(max=train - 1)
        target = scheduler.get_velocity(latents, noise, timesteps)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        for name, condition in states.items():
            sums[name] += float((unet(noisy, timesteps, condition).sample - target).square().mean()) / draws
    return {name: value if name == "loss" else value - sums["loss"] for name, value in sums.items()}
