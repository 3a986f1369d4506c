"""The microworld's checkpoints as models: those that ship with the package, or a folder of one's own."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs._base.arguments import as_path
from diva_rs._base.checkpoint import load_weights
from diva_rs._base.files import read_text
from diva_rs.clip.weights import fill
from diva_rs.diffusion import Teacher
from diva_rs.errors import ConfigError, DataError, shown
from diva_rs.microworld.captions import Tokenizer
from diva_rs.microworld.embedding import new_clip
from diva_rs.microworld.models import new_dit, new_scheduler, new_text_encoder, new_unet, new_vae

SHIPPED = Path(__file__).parent / "checkpoints"
TEACHERS = ("unet", "dit", "untrained")


def clip_name(number: int) -> str:
    """The file of a CLIP, without its ending.

    >>> clip_name(0), clip_name(3)
    ('clip', 'clip-3')
    """
    return f"clip-{number}" if number else "clip"


class Microworld:
    """A tiny CLIP with CLIP's blind spot, and tiny diffusion models that know the details.

    Args:
        folder: what ``python -m lab pretrain`` wrote; by default the checkpoints in the package.

    Raises:
        DataError: there are no checkpoints in that folder, or its manifest is damaged when it is read.

    >>> world = Microworld()
    >>> world.teacher().latent_shape
    (16, 6, 6)
    """

    def __init__(self, folder: str | Path = SHIPPED) -> None:
        self.folder = as_path(folder)
        if not (self.folder / "manifest.json").is_file():
            raise DataError(
                f"{self.folder} holds no manifest.json: `python -m lab pretrain --output-dir FOLDER` "
                "makes one"
            )

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """How the checkpoints were made, and their figures on the validation split."""
        place = self.folder / "manifest.json"
        try:
            manifest: dict[str, Any] = json.loads(read_text(place))
            whole = isinstance(manifest["clips"], list) and manifest["scaling_factor"] > 0
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise DataError(f"{place} is damaged: make the checkpoints again in another folder")
        return manifest

    @property
    def clips(self) -> int:
        """How many CLIPs there are, each pretrained from another seed; one ships with the package."""
        return len(self.manifest["clips"])

    def clip(self, number: int = 0) -> nn.Module:
        """A tiny CLIP, an ``open_clip.CLIP``: a new copy at every call.

        Raises:
            ConfigError: there are not so many.

        >>> type(Microworld().clip()).__name__
        'CLIP'
        """
        if not 0 <= number < self.clips:
            raise ConfigError(f"clip {number} of {self.clips} in {self.folder}")
        return self._filled(new_clip(0), clip_name(number))

    @cached_property
    def vae(self) -> Any:
        """The tiny ``AutoencoderKL``."""
        vae: Any = self._filled(new_vae(0), "vae")
        vae.register_to_config(scaling_factor=self.manifest["scaling_factor"])
        return vae

    @cached_property
    def unet(self) -> Any:
        """The tiny ``UNet2DConditionModel`` that was trained on detailed captions."""
        return self._filled(new_unet(0), "unet")

    @cached_property
    def text_encoder(self) -> Any:
        """The ``CLIPTextModel`` that reads the UNet's captions."""
        return self._filled(new_text_encoder(0), "text_encoder")

    @cached_property
    def dit(self) -> Any:
        """The weaker ``DiTTransformer2DModel``, which knows the object's class alone."""
        return self._filled(new_dit(0), "dit")

    def teacher(self, kind: str = "unet", seed: int = 0) -> Teacher:
        """A `Teacher` of the tiny diffusion models.

        Args:
            kind: "unet", "dit", or "untrained": a UNet with fresh weights, for the control.
            seed: of those fresh weights.

        Raises:
            ConfigError: there is no such kind.
        """
        if not isinstance(kind, str) or kind not in TEACHERS:
            raise ConfigError(f"kind={shown(kind)}: one of {', '.join(TEACHERS)}")
        if kind == "dit":
            return Teacher(self.dit, vae=self.vae, scheduler=new_scheduler())
        unet = self.unet if kind == "unet" else new_unet(1000 + seed)
        with torch.no_grad():
            text = self.text_encoder(Tokenizer()([""])).last_hidden_state
        return Teacher(unet, vae=self.vae, scheduler=new_scheduler(), text_condition=text)

    @torch.no_grad()
    def loss_ratio(self, teacher: Teacher, latents: Tensor) -> float:
        """The trained UNet's denoising loss over that of ``teacher``, under the empty text.

        A control with an untrained denoiser has a loss many times larger; by this factor it weighs as much.
        """
        generator = torch.Generator().manual_seed(0)
        scheduler = new_scheduler()
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(0, len(scheduler.alphas_cumprod), (len(latents),), generator=generator)
        noisy, target = (
            scheduler.add_noise(latents, noise, timesteps),
            scheduler.get_velocity(latents, noise, timesteps),
        )
        text = self.teacher().text().expand(len(latents), -1, -1)
        losses = [
            float((one.denoise(noisy, timesteps, text) - target).square().mean())
            for one in (self.teacher(), teacher)
        ]
        return losses[0] / losses[1]

    def _filled(self, model: nn.Module, name: str) -> nn.Module:
        weights = load_weights(self.folder / f"{name}.safetensors")
        fill(model, weights, f"{name}.safetensors")
        return model.eval()
