"""From images to what the teacher denoises: latents of an autoencoder, or the pixels themselves."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs._base.tensors import described
from diva_rs.diffusion.discovery import Parts
from diva_rs.diffusion.frozen import fitted, freeze, home, moved, no_autocast
from diva_rs.errors import ConfigError, ShapeError, a_type

_PIXELS = 3  # channels of a denoiser that needs no VAE


def check_vae(vae: Any, channels: int) -> None:
    """Raise ConfigError unless ``vae`` is an autoencoder of images, with latents of ``channels`` channels."""
    config: Any = getattr(vae, "config", None)
    known = all(hasattr(config, name) for name in ("in_channels", "latent_channels", "scaling_factor"))
    known = known and isinstance(vae, nn.Module) and hasattr(vae, "encode") and bool(_widths(config))
    if not known or any(isinstance(part, nn.Conv3d) for part in vae.modules()):
        raise ConfigError(
            f"vae is {a_type(vae)}, expected a diffusers autoencoder of images, such as AutoencoderKL, "
            "AutoencoderTiny or AutoencoderDC"
        )
    if config.in_channels != _PIXELS:
        raise ConfigError(f"the VAE encodes images of {config.in_channels} channels, a step gives it 3")
    if config.latent_channels != channels:
        raise ConfigError(
            f"the VAE's latents have {config.latent_channels} channels, the denoiser takes {channels}: pass "
            "the VAE that it was trained with"
        )


def vae_of(
    parts: Parts,
    channels: int,
    teacher: tuple[torch.device, torch.dtype],
    device: torch.device | None,
    precision: torch.dtype | None,
) -> nn.Module | None:
    """The frozen VAE for a denoiser of ``channels`` channels; None where it works on pixels.

    A VAE that was loaded here goes to the teacher's device and precision, one that was given stays as it is;
    but for a ``device`` or ``precision`` of the caller's.
    """
    vae = parts.get("vae") if channels == _PIXELS else parts.need("vae")
    if vae is None:
        return None
    check_vae(vae, channels)
    own_device, own_dtype = teacher if parts.owned("vae") else home(vae, "the VAE")
    return freeze(fitted(vae, device or own_device, vae_dtype(vae, precision or own_dtype)))


def downscale(vae: Any) -> int:
    """Pixels per latent along a side: diffusers' encoders halve after every block but the last."""
    return 1 if vae is None else 1 << (len(_widths(vae.config)) - 1)


def usual_downscale(parts: Parts, channels: int) -> int:
    """That of the VAE; where it is not found, what is usual for a denoiser of ``channels`` channels."""
    vae = parts.get("vae")
    return 8 if vae is None and channels != _PIXELS else downscale(vae)


def vae_dtype(vae: nn.Module, dtype: torch.dtype) -> torch.dtype:
    """The dtype that the VAE computes in when the teacher computes in ``dtype``.

    A VAE with ``force_upcast`` overflows in float16 (known of SDXL's), so there it runs in float32. bfloat16
    has the range of float32: diffusers' pipelines leave a VAE in it, too.
    """
    upcast = dtype == torch.float16 and getattr(vae.config, "force_upcast", True)
    return torch.float32 if upcast else dtype


def latents_of(
    vae: Any,
    images: Tensor,
    channels: int,
    seeds: Sequence[int] | None,
    noise: Tensor | None,
    micro_batch: int,
) -> Tensor:
    """What a denoiser of ``channels`` channels denoises, for images (B, 3, H, W): see `Teacher.encode`."""
    factor = downscale(vae)
    _check_images(images, channels if vae is None else int(vae.config.in_channels), factor)
    sampled = (seeds is not None) + (noise is not None)
    if vae is None and not sampled:
        return images.detach()
    if vae is None:
        raise ConfigError("this teacher works on pixels, which have no posterior: leave out seeds and noise")
    if sampled > 1:
        raise ConfigError("both seeds and noise are given: the posterior is sampled with one of them")
    if micro_batch < 1:
        raise ConfigError(f"micro_batch is {micro_batch}, expected at least 1 image")
    shape = (channels, images.shape[2] // factor, images.shape[3] // factor)
    if seeds is not None:
        if len(seeds) != len(images):
            raise ShapeError(f"{len(seeds)} seeds for {len(images)} images: one per sample")
        # Drawn on the host: the same on every device.
        draws = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        rows = [torch.randn(shape, generator=draw, device="cpu") for draw in draws]
        noise = torch.stack(rows)
        noise = moved(noise.pin_memory() if images.is_cuda else noise, images.device, images.dtype)
    if noise is not None and tuple(noise.shape) != (len(images), *shape):
        raise ShapeError(f"noise is {tuple(noise.shape)}, expected {(len(images), *shape)} like the latents")
    return _encoded(vae, images, noise, micro_batch)


def check_size(shape: tuple[int, ...], factor: int) -> None:
    """Raise ShapeError unless images of ``shape`` (..., H, W) can be scaled down by ``factor``."""
    if shape[-2] % factor or shape[-1] % factor:
        raise ShapeError(
            f"images is {shape}: height and width must be multiples of {factor}, as the VAE scales them down"
        )


def _check_images(images: Tensor, channels: int, factor: int) -> None:
    shape = tuple(images.shape)
    if images.ndim != 4 or shape[1] != channels or 0 in shape or not images.is_floating_point():
        raise ShapeError(
            f"images is {described(images)}, expected floating point (B, {channels}, H, W) in [-1, 1], "
            "nothing of it empty: for uint8, images / 127.5 - 1"
        )
    check_size(shape, factor)


def _encoded(vae: Any, images: Tensor, noise: Tensor | None, micro_batch: int) -> Tensor:
    # diffusers DiagonalGaussianDistribution: its mean, or mean + std * noise; or the latents themselves.
    device, dtype = home(vae, "the VAE")
    parts = []
    with torch.no_grad(), no_autocast(device):
        for start in range(0, len(images), micro_batch):
            stop = start + micro_batch
            found = vae.encode(moved(images[start:stop], device, dtype), return_dict=False)[0]
            latents: Tensor = found if isinstance(found, Tensor) else found.mean
            if noise is not None:
                if found is latents:
                    raise ConfigError(
                        f"{a_type(vae)} has no posterior to sample: use latent='mean', or leave out seeds "
                        "and noise"
                    )
                latents = latents + found.std * moved(noise[start:stop], device, dtype)
            parts.append(_scaled(vae.config, latents))
        return moved(torch.cat(parts), images.device, images.dtype)


def _widths(config: Any) -> Any:
    """The channels of the encoder's blocks."""
    widths = getattr(config, "encoder_block_out_channels", None)
    return getattr(config, "block_out_channels", None) if widths is None else widths


def _scaled(config: Any, latents: Tensor) -> Tensor:
    # diffusers' pipelines and training scripts: first shift, then scale; some SDXL models shift per channel.
    scale = float(config.scaling_factor)
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        mean, std = (
            torch.tensor(row, dtype=latents.dtype, device="cpu").view(1, -1, 1, 1) for row in (mean, std)
        )
        return (latents - moved(mean, latents.device)) * scale / moved(std, latents.device)
    shift = getattr(config, "shift_factor", None)
    return (latents if shift is None else latents - float(shift)) * scale
