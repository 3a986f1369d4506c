"""Autoencoders beside AutoencoderKL, and latents of 16 channels with a shift: diffusers' own latents."""

import re

import diffusers
import pytest
import torch

from builders import small
from builders.diffusion import tiny_unet, tiny_vae
from diva_rs import Recipe, Teacher, Trainer
from diva_rs.errors import ConfigError, ShapeError

pytestmark = pytest.mark.parity


def tiny():
    torch.manual_seed(2)
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        scaling_factor=0.7,
        shift_factor=0.2,
    )


def deep():
    torch.manual_seed(2)
    widths, layers, kinds = (8, 16, 16), (1, 1, 1), ("ResBlock", "ResBlock", "EfficientViTBlock")
    return diffusers.AutoencoderDC(
        latent_channels=8,
        attention_head_dim=8,
        encoder_block_types=kinds,
        decoder_block_types=kinds,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=layers,
        decoder_layers_per_block=layers,
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        scaling_factor=0.41407,
    )


def sixteen():
    return tiny_vae(latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False)


# name: (the VAE, its latents before they are scaled, what runs it, as a pattern)
VAES = {
    "AutoencoderTiny": (
        tiny,
        lambda vae, x: vae.encode(x).latents - 0.2,
        r"torch \(it is a .*AutoencoderTiny\)$",
    ),
    "AutoencoderDC": (deep, lambda vae, x: vae.encode(x).latent, r"torch \(it is a .*AutoencoderDC\)$"),
    "AutoencoderKL": (sixteen, lambda vae, x: vae.encode(x).latent_dist.mean - 0.1159, "native$"),
}


def teacher_of(vae):
    channels = vae.config.latent_channels
    unet = tiny_unet("sd1", in_channels=channels, out_channels=channels)
    return Teacher(unet, vae=vae, scheduler=small.scheduler(), text_condition=torch.randn(1, 5, 24))


@pytest.mark.parametrize("name", VAES)
def test_latents_are_diffusers_own_and_train(name):
    make, direct, backend = VAES[name]
    vae = make().eval()
    teacher = teacher_of(vae)
    assert teacher.image_size == tuple(4 * side for side in teacher.latent_shape[1:])
    images = torch.rand(3, 3, *teacher.image_size)
    with torch.no_grad():
        expected = direct(vae, 2 * images - 1) * vae.config.scaling_factor
    latents = teacher.encode(2 * images - 1)
    torch.testing.assert_close(latents, expected)
    assert tuple(latents.shape[1:]) == teacher.latents_of(teacher.image_size)

    losses = []
    for batch in ({"images": images}, {"images": images, "latents": expected}):
        trainer = Trainer(small.small_clip(), teacher, Recipe(choose=5))
        losses.append(trainer.accumulate({**batch, "ids": [1, 2, 3]}))
        assert all(parameter.grad is not None for parameter in trainer.clip.visual.parameters())
        assert "latents" in batch or re.match(backend, trainer.backend["vae"])
    assert abs(losses[0] - losses[1]) <= 1e-5 * losses[0]


@pytest.mark.parametrize("make", [tiny, deep])
def test_an_autoencoder_without_a_posterior_has_no_samples(make):
    teacher = teacher_of(make())
    with pytest.raises(ConfigError, match=r"an Autoencoder\w+ has no posterior to sample: use latent='mean'"):
        teacher.encode(torch.zeros(2, 3, 32, 32), seeds=[1, 2])
    trainer = Trainer(small.small_clip(), teacher, Recipe(choose=5, latent="sample"))
    with pytest.raises(ConfigError, match="no posterior to sample"):
        trainer.accumulate(small.images())
    with pytest.raises(ShapeError, match="multiples of 4"):
        teacher.encode(torch.zeros(2, 3, 30, 32))
    with pytest.raises(ConfigError, match="the VAE cannot run natively"):
        Trainer(small.small_clip(), teacher, Recipe(choose=5, backend="native")).accumulate(small.images())


def test_an_autoencoder_of_videos_is_refused():
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=4
    )
    with pytest.raises(ConfigError, match="expected a diffusers autoencoder of images"):
        teacher_of(vae)
