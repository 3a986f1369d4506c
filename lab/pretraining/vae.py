"""Training of the tiny autoencoder."""

from typing import Any

import torch
from torch import nn

from lab.pretraining.data import Pixels, batch_numbers
from lab.pretraining.loop import NOTHING, Keep, Progress, cosine, set_rate


def train_vae(
    vae: Any,
    pixels: Pixels,
    steps: int,
    batch: int = 32,
    lr: float = 2e-3,
    kl: float = 1e-5,
    seed: int = 0,
    keep: Keep = NOTHING,
) -> dict[str, float]:
    """Train an ``AutoencoderKL`` to reconstruct images; then set its scaling factor.

    The loss is the squared error per pixel plus ``kl`` times the divergence from a standard normal per
    pixel. Afterwards ``config.scaling_factor`` is 1 over the standard deviation of the posterior's mean on
    ``pixels``, as Stable Diffusion's is.

    Returns:
        the last losses: "mse" (of pixels in [-1, 1]) and "kl".
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    progress = Progress("vae", steps)
    vae.train()
    for step in keep.steps(progress, model=vae, optimizer=optimizer, generator=generator):
        numbers, _ = batch_numbers(len(pixels), batch, step, seed)
        images = pixels[numbers] * 2 - 1
        posterior = vae.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        error = nn.functional.mse_loss(decoded, images)
        divergence = posterior.kl().mean() / images[0].numel()
        optimizer.zero_grad(set_to_none=True)
        (error + kl * divergence).backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        set_rate(optimizer, lr * cosine(steps)(step))
        optimizer.step()
        progress.update(step, mse=error, kl=divergence)
    vae.eval()
    with torch.no_grad():
        numbers, _ = batch_numbers(len(pixels), min(1024, len(pixels)), 0, seed)
        means = torch.cat(
            [vae.encode(part * 2 - 1).latent_dist.mean for part in torch.split(pixels[numbers], 64)]
        )
    vae.register_to_config(scaling_factor=1 / float(means.std()))
    return progress.last


@torch.no_grad()
def reconstruction_error(vae: Any, pixels: Pixels) -> float:
    """Mean squared error of reconstructions from the posterior's mean, of pixels in [-1, 1]."""
    sums = 0.0
    for part in torch.split(torch.arange(len(pixels)), 64):
        images = pixels[part.tolist()] * 2 - 1
        decoded = vae.decode(vae.encode(images).latent_dist.mean).sample
        sums += float((decoded - images).square().sum())
    return sums / (len(pixels) * images[0].numel())
