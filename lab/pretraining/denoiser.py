"""Training of the tiny denoisers: the UNet on detailed captions, the DiT on the subject's class."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs.microworld.models import new_scheduler
from lab.pretraining.data import Captioned, Pixels, batch_numbers
from lab.pretraining.loop import NOTHING, Keep, Progress, cosine

EMPTY = 0.1  # share of empty captions, as in Stable Diffusion's training


@torch.no_grad()
def encode(vae: Any, pixels: Pixels, batch: int = 128) -> Tensor:
    """Scaled posterior means of all images: (N, C, h, w) float32."""
    parts = []
    for start in range(0, len(pixels), batch):
        images = pixels[range(start, min(start + batch, len(pixels)))]
        parts.append(vae.encode(images * 2 - 1).latent_dist.mean * vae.config.scaling_factor)
    return torch.cat(parts)


def train_unet(
    unet: Any,
    encoder: Any,
    dataset: Captioned,
    latents: Tensor,
    steps: int,
    batch: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
    keep: Keep = NOTHING,
) -> dict[str, float]:
    """Train a ``UNet2DConditionModel`` with its text encoder on detailed captions, a tenth of them empty.

    Returns:
        the last running means: "loss".
    """

    def predict(noisy: Tensor, timesteps: Tensor, numbers: Sequence[int], epoch: int, chance: Any) -> Tensor:
        captions = dataset.detailed_captions(numbers, epoch)
        left_out = torch.rand(len(captions), generator=chance) < EMPTY
        kept = ["" if out else text for text, out in zip(captions, left_out.tolist(), strict=True)]
        states = encoder(dataset.tokenizer(kept)).last_hidden_state
        prediction: Tensor = unet(noisy, timesteps, states).sample
        return prediction

    return _train("unet", nn.ModuleList([unet, encoder]), predict, latents, steps, batch, lr, seed, keep)


def train_dit(
    dit: Any,
    dataset: Captioned,
    latents: Tensor,
    steps: int,
    batch: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
    keep: Keep = NOTHING,
) -> dict[str, float]:
    """Train a ``DiTTransformer2DModel`` on the subject's class; its embedding drops a tenth of the labels.

    Returns:
        the last running means: "loss".
    """
    labels = dataset.labels(range(len(latents)))[:, list(dataset.values).index(dataset.subject)]

    def predict(noisy: Tensor, timesteps: Tensor, numbers: Sequence[int], epoch: int, chance: Any) -> Tensor:
        prediction: Tensor = dit(noisy, timesteps, class_labels=labels[torch.tensor(numbers)]).sample
        return prediction

    return _train("dit", nn.ModuleList([dit]), predict, latents, steps, batch, lr, seed, keep)


def _train(
    name: str,
    model: nn.Module,
    predict: Callable[[Tensor, Tensor, Sequence[int], int, torch.Generator], Tensor],
    latents: Tensor,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    keep: Keep,
) -> dict[str, float]:
    scheduler = new_scheduler()
    generator, chance = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=1e-3)
    averages = [parameter.detach().clone() for parameter in parameters]
    progress = Progress(name, steps)
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the DiT drops labels by the global generator
        parts = {"noise": generator, "chance": chance, "global": torch.default_generator}
        kept = keep.steps(progress, model=model, optimizer=optimizer, averages=averages, **parts)
        for step in kept:
            numbers, epoch = batch_numbers(len(latents), batch, step, seed)
            clean = latents[torch.tensor(numbers)]
            noise = torch.randn(clean.shape, generator=generator)
            timesteps = torch.randint(0, len(scheduler.alphas_cumprod), (len(clean),), generator=generator)
            target = scheduler.get_velocity(clean, noise, timesteps)
            noisy = scheduler.add_noise(clean, noise, timesteps)
            prediction = predict(noisy, timesteps, numbers, epoch, chance)
            loss = nn.functional.mse_loss(prediction, target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            cosine(optimizer, lr, step, steps)
            optimizer.step()
            # A moving average over about the last hundred steps, longer than the first few.
            torch._foreach_lerp_(averages, [p.detach() for p in parameters], max(0.01, 1 / (step + 1)))
            progress.update(step, loss=loss)
    with torch.no_grad():
        for parameter, average in zip(parameters, averages, strict=True):
            parameter.copy_(average)
    model.eval()
    return progress.last
