"""The microworld's checkpoints as models: those in the package, or those of a folder."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs._base.checkpoint import load_weights
from diva_rs._base.files import as_path, read_text
from diva_rs.clip.weights import fill
from diva_rs.diffusion import Teacher
from diva_rs.errors import DataError
from diva_rs.microworld.captions import Tokenizer
from diva_rs.microworld.models import new_clip, new_scheduler, new_text_encoder, new_unet, new_vae
from diva_rs.microworld.rendering import SIDE

SHIPPED = Path(__file__).parent / "checkpoints"


class Microworld:
    """A tiny CLIP with CLIP's blind spot, and a tiny diffusion model that was trained on the details.

    ``folder`` holds what ``python -m lab pretrain`` wrote; by default it is the package's own.

    >>> world = Microworld()
    >>> world.teacher().latent_shape
    (16, 6, 6)
    """

    tokenizer, side, patch, heads = Tokenizer(), SIDE, 12, 2

    def __init__(self, folder: str | Path = SHIPPED) -> None:
        self.folder = as_path(folder)
        if not (self.folder / "manifest.json").is_file():
            how = "`python -m lab pretrain --output-dir FOLDER` makes one"
            raise DataError(f"{self.folder} holds no manifest.json: {how}")

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

    def clip(self) -> nn.Module:
        """The tiny CLIP, an ``open_clip.CLIP``: a new copy at every call."""
        return self.filled(new_clip(0, self.tokenizer, self.side, self.patch), "clip")

    @cached_property
    def vae(self) -> Any:
        """The tiny ``AutoencoderKL``."""
        vae: Any = self.filled(new_vae(0, self.side), "vae")
        vae.register_to_config(scaling_factor=self.manifest["scaling_factor"])
        return vae

    @cached_property
    def unet(self) -> Any:
        """The tiny ``UNet2DConditionModel`` that was trained on detailed captions."""
        return self.filled(new_unet(0, self.side, self.heads), "unet")

    @cached_property
    def text_encoder(self) -> Any:
        """The ``CLIPTextModel`` that reads the UNet's captions."""
        return self.filled(new_text_encoder(0, self.tokenizer), "text_encoder")

    def teacher(self) -> Teacher:
        """A `Teacher` of the UNet, with the empty text."""
        return self.teacher_of(self.unet)

    def teacher_of(self, unet: nn.Module) -> Teacher:
        """A `Teacher` of another UNet, with this world's VAE and the empty text."""
        return Teacher(unet, vae=self.vae, scheduler=new_scheduler(), text_condition=self.encode([""]))

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """(M, L, C): the text tokens of captions, as the UNet reads them.

        >>> Microworld().encode(["a photo of a fish"]).shape
        torch.Size([1, 26, 64])
        """
        tokens: Tensor = self.text_encoder(self.tokenizer(texts)).last_hidden_state
        return tokens

    def filled(self, model: nn.Module, name: str) -> nn.Module:
        """The model with the weights of ``name``.safetensors."""
        fill(model, load_weights(self.folder / f"{name}.safetensors"), f"{name}.safetensors")
        return model.eval()
