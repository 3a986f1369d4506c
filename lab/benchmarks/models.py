"""The modules that all contestants share, with random weights, and their batches."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import diva_rs
from diva_rs._base.optional import require
from diva_rs.diffusion import Slots
from diva_rs.recipes.recipe import Recipe
from diva_rs.step.bridge import make_projector
from lab.benchmarks.sizes import Size

STEPS = 1000  # of the noise schedule


class Models:
    """CLIP, UNet, VAE, text encoder and schedule of one size, in float32, and the recipe of the comparison.

    All contestants share the trained CLIP and clear its gradients before each step. ``device`` "meta" gives
    modules without weights, for counting.
    """

    def __init__(self, size: Size, precision: str = "fp32", device: str = "cpu", seed: int = 0) -> None:
        diffusers = require("diffusers", extra="diffusers")
        transformers = require("transformers", extra="transformers")
        open_clip = require("open_clip", extra="open-clip")
        self.size, self.precision, self.device = size, precision, torch.device(device)
        # What the official code computes, but for its draw weights: see `diva_rs.recipes.diva`.
        self.recipe = Recipe.from_dict(
            {
                "choose": size.choose,
                "draws": size.draws,
                "replacement": True,
                "text": "add",
                "vae_pixels": "official",
                "resize": "bilinear",
                "antialias": False,
                "precision": precision,
            }
        )
        self.scheduler = diffusers.DDPMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, num_train_timesteps=STEPS
        )
        torch.manual_seed(seed)
        with torch.device(self.device):
            self.clip: Any = open_clip.model.CLIP(**size.clip).eval()
            self.unet: Any = _frozen(diffusers.UNet2DConditionModel(**size.unet))
            self.vae: Any = _frozen(diffusers.AutoencoderKL(**size.vae))
            self.text_encoder: Any = _frozen(
                transformers.CLIPTextModel(transformers.CLIPTextConfig(**size.text))
            )
            # Only the length of the prompt matters here.
            self.prompt = torch.ones(1, 77, dtype=torch.int64)
            with torch.no_grad():
                self.text: Tensor = self.text_encoder(self.prompt).last_hidden_state

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the frozen networks."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def only_what_is_needed(self) -> "Models":
        """Cast the frozen weights to the dtype of the computation and drop the text encoder."""
        self.unet, self.vae = self.unet.to(self.dtype), self.vae.to(self.dtype)
        self.text_encoder = None
        return self

    def changed(self, draws: int | None = None, side: int | None = None) -> "Models":
        """The same modules for another N, or for images of another side."""
        other, size = copy.copy(self), self.size
        other.size = replace(
            size, draws=draws or size.draws, vae={**size.vae, "sample_size": side or size.side}
        )
        other.recipe = self.recipe.replace(draws=other.size.draws, image_size=other.size.side)
        return other

    @property
    def patches(self) -> int:
        """P of the vision tower."""
        vision = self.size.clip["vision_cfg"]
        return int((vision["image_size"] // vision["patch_size"]) ** 2)

    def projector(self) -> nn.Module:
        """A fresh projector with the same initial weights at every call."""
        slots = Slots(tokens=self.size.unet["cross_attention_dim"])
        projector = make_projector(self.recipe, self.size.clip["embed_dim"], slots)
        return projector if self.device.type == "cpu" else projector.to(self.device)

    def images(self, seed: int = 0, batch: int | None = None) -> Tensor:
        """(B, 3, side, side) in [0, 1]."""
        shape = (batch or self.size.batch, 3, self.size.side, self.size.side)
        if self.device.type == "meta":
            return torch.empty(shape, device="meta")
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)

    def draws(self, batch: int | None = None, seed: int = 0) -> diva_rs.Draws:
        """Keyed draws for a batch, in the form that every contestant takes."""
        return diva_rs.draw(
            seed=seed,
            ids=range(batch or self.size.batch),
            draws=self.recipe.draws,
            latent_shape=self.size.latent_shape,
            patches=self.patches,
            choose=self.size.choose,
            replacement=True,
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings of diffusers and transformers about random weights."""
    libraries = [require(name, extra=name) for name in ("diffusers", "transformers")]
    before = [library.utils.logging.get_verbosity() for library in libraries]
    for library in libraries:
        library.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        for library, verbosity in zip(libraries, before, strict=True):
            library.utils.logging.set_verbosity(verbosity)


def _frozen(module: Any) -> Any:
    return module.eval().requires_grad_(False)
