"""Training of the tiny denoisers: the UNet on detailed captions, the DiT on the subject's class."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs.microworld.models import new_scheduler
from lab.pretraining.data import Captioned, Pixels, batch_numbers
from lab.pretraining.loop import NOTHING, Keep, Optimizers, Progress, plateau

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
    matrices: float = 5e-3,
    seed: int = 0,
    keep: Keep = NOTHING,
) -> dict[str, float]:
    """Train a ``UNet2DConditionModel`` with its text encoder on detailed captions, a tenth of them empty.

    Returns:
        the last running means: "loss".
    """

    def predict(
        noisy: Tensor, timesteps: Tensor, numbers: Sequence[int], epoch: int, generator: Any
    ) -> Tensor:
        captions = dataset.detailed_captions(numbers, epoch)
        left_out = torch.rand(len(captions), generator=generator) < EMPTY
        kept = ["" if out else text for text, out in zip(captions, left_out.tolist(), strict=True)]
        states = encoder(dataset.tokenizer(kept)).last_hidden_state
        prediction: Tensor = unet(noisy, timesteps, states).sample
        return prediction

    return _train(
        "unet", nn.ModuleList([unet, encoder]), predict, latents, steps, batch, lr, matrices, seed, keep
    )


def train_dit(
    dit: Any,
    dataset: Captioned,
    latents: Tensor,
    steps: int,
    batch: int = 64,
    lr: float = 1e-3,
    matrices: float = 5e-3,
    seed: int = 0,
    keep: Keep = NOTHING,
) -> dict[str, float]:
    """Train a ``DiTTransformer2DModel`` on the subject's class; its embedding drops a tenth of the labels.

    Returns:
        the last running means: "loss".
    """
    labels = dataset.labels(range(len(latents)))[:, list(dataset.values).index(dataset.subject)]

    def predict(
        noisy: Tensor, timesteps: Tensor, numbers: Sequence[int], epoch: int, generator: Any
    ) -> Tensor:
        prediction: Tensor = dit(noisy, timesteps, class_labels=labels[torch.tensor(numbers)]).sample
        return prediction

    return _train("dit", nn.ModuleList([dit]), predict, latents, steps, batch, lr, matrices, seed, keep)


def _train(
    name: str,
    model: nn.Module,
    predict: Callable[[Tensor, Tensor, Sequence[int], int, torch.Generator], Tensor],
    latents: Tensor,
    steps: int,
    batch: int,
    lr: float,
    matrices: float,
    seed: int,
    keep: Keep,
) -> dict[str, float]:
    scheduler = new_scheduler()
    generator = torch.Generator().manual_seed(seed)
    optimizers = Optimizers(model, lr, matrices, plateau(steps), _inner, (0.9, 0.99), 1e-3)
    averages = [parameter.detach().clone() for parameter in optimizers.parameters]
    progress = Progress(name, steps)
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the DiT drops labels by the global generator
        parts = {"noise": generator, "global": torch.default_generator}
        for step in keep.steps(progress, model=model, optimizers=optimizers, averages=averages, **parts):
            numbers, epoch = batch_numbers(len(latents), batch, step, seed)
            clean = latents[torch.tensor(numbers)]
            noise = torch.randn(clean.shape, generator=generator)
            timesteps = torch.randint(0, len(scheduler.alphas_cumprod), (len(clean),), generator=generator)
            target = scheduler.get_velocity(clean, noise, timesteps)
            noisy = scheduler.add_noise(clean, noise, timesteps)
            loss = nn.functional.mse_loss(predict(noisy, timesteps, numbers, epoch, generator), target)
            optimizers.step(loss, step)
            # A moving average over about the last 250 steps, longer than the first few.
            now = [parameter.detach() for parameter in optimizers.parameters]
            torch._foreach_lerp_(averages, now, max(0.004, 1 / (step + 1)))
            progress.update(step, loss=loss)
    with torch.no_grad():
        for parameter, average in zip(optimizers.parameters, averages, strict=True):
            parameter.copy_(average)
    model.eval()
    return progress.last


def _inner(name: str) -> bool:
    """Not what reads tokens, labels or latents, nor what writes latents."""
    return not any(part in name for part in ("embed", "conv_in", "conv_out"))
