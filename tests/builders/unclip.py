"""A small Stable unCLIP pipeline, un2CLIP's step in plain PyTorch, and a run for `builders.killed`."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer
from torch import Tensor, nn

import diva_rs
from builders.small import WIDTH, scheduler, small_unet, small_vae
from builders.unets import stirred
from diva_rs.microworld import Microworld
from diva_rs.microworld.dataset import World

FIELDS: dict[str, Any] = {"image_size": None, "steps": 6, "batch": 4, "lr": 1e-3}


def small_unclip(
    width: int = 20, channels: int = 4, side: int = 8, vae: nn.Module | None = None, seed: int = 1
) -> Any:
    """A pipeline with random weights for embeddings (B, width), float32; it predicts the velocity."""
    labels = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2 * width}
    unet = small_unet(seed=seed, channels=channels, sample_size=side, **labels)
    normalizer = StableUnCLIPImageNormalizer(width)
    normalizer.mean.data, normalizer.std.data = torch.randn(1, width), torch.rand(1, width) + 0.5
    return diffusers.StableUnCLIPImg2ImgPipeline(
        feature_extractor=None,
        image_encoder=None,
        image_normalizer=normalizer,
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=None,
        text_encoder=None,
        unet=stirred(unet),
        scheduler=scheduler(prediction_type="v_prediction"),
        vae=vae or small_vae(),
    )


def empty_text() -> Tensor:
    """What stands for the empty prompt's tokens (1, 7, WIDTH)."""
    return torch.randn(1, 7, WIDTH, generator=torch.Generator().manual_seed(3))


def unclip_teacher(dtype: torch.dtype = torch.float32, level: int | None = None) -> diva_rs.Teacher:
    """Of the small pipeline, computing in `dtype`."""
    pipeline = small_unclip()
    pipeline.unet.to(dtype)
    pipeline.vae.to(dtype)
    return diva_rs.Teacher(pipeline, text_condition=empty_text().to(dtype), noise_level=level)


def reference_loss(
    visual: nn.Module, level: int, pixels: Tensor, latents: Tensor, draws: Any, noised: Tensor
) -> Tensor:
    """un2CLIP's loss with diffusers alone: v-prediction, the embedding through `noise_image_embeddings`.

    `pixels` are normalised for CLIP. `noised` (B, N, V) is the noise on the embedding, standard normal.
    """
    dtype = pixels.dtype
    pipeline, text = small_unclip(), empty_text().to(dtype)
    unet = pipeline.unet.to(dtype).requires_grad_(False)
    normalizer = pipeline.image_normalizer
    normalizer.mean.data, normalizer.std.data = normalizer.mean.data.to(dtype), normalizer.std.data.to(dtype)
    scheduler, total = pipeline.scheduler, torch.zeros((), dtype=dtype)
    timesteps, noises = torch.from_numpy(draws.timesteps), torch.from_numpy(draws.noise).to(dtype)
    for n in range(timesteps.shape[1]):
        embedding = visual(pixels)
        labels = pipeline.noise_image_embeddings(embedding, level, noised[:, n])
        noise, t = noises[:, n], timesteps[:, n]
        noisy, target = scheduler.add_noise(latents, noise, t), scheduler.get_velocity(latents, noise, t)
        hidden = text.expand(len(pixels), -1, -1)
        prediction = unet(noisy, t, encoder_hidden_states=hidden, class_labels=labels).sample
        total = total + nn.functional.mse_loss(prediction, target) / timesteps.shape[1]
    return total


def run(folder: Path, callbacks: Any = ()) -> None:
    """un2CLIP on the microworld: its CLIP and VAE, and a small Stable unCLIP of random weights."""
    world = Microworld()
    clip = world.clip()
    pipeline = small_unclip(clip.visual.output_dim, channels=16, side=6, vae=world.vae)
    teacher = diva_rs.Teacher(pipeline, text_condition=empty_text())
    recipe = diva_rs.Recipe.named("un2clip-openai-vit-l-14-224").replace(
        checkpoint_every=1, log_every=1, **FIELDS
    )
    data = torch.utils.data.TensorDataset(World("train", 20).images(range(20)))
    loader = torch.utils.data.DataLoader(data, batch_size=2, shuffle=True)
    diva_rs.post_train(clip, teacher, loader, recipe, output_dir=folder, callbacks=callbacks, progress=False)
