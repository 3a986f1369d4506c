"""The models of a study: beside CLIP and the UNet a DiT, and denoisers that are not trained yet."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs._base.checkpoint import load_weights
from diva_rs._base.optional import require
from diva_rs.clip.weights import fill
from diva_rs.diffusion import Teacher
from diva_rs.errors import ConfigError, shown
from diva_rs.microworld.models import FACTOR, LATENT_CHANNELS, fresh, new_clip, new_scheduler, new_unet
from diva_rs.microworld.pretrained import SHIPPED, Microworld
from diva_rs.microworld.rendering import SIDE
from diva_rs.microworld.scenes import VALUES
from lab.worlds import Data, data_of

# A teacher that represents all nine patterns and the object, ten CLIPs with even blind spots, and a DiT.
NINE = Path(__file__).parent / "checkpoints" / "nine"


class StudyWorld(Microworld):
    """`Microworld` with more CLIPs and teachers; the DiT of the package's world is in ``lab/checkpoints``.

    The models may be of another world: `data` is what the manifest names.
    """

    def __init__(self, folder: str | Path = SHIPPED) -> None:
        super().__init__(folder)
        self.data: Data = data_of(self.manifest.get("data", {}))
        self.tokenizer, self.side = self.data.tokenizer, self.data.side
        settings = self.manifest.get("settings", {})
        self.patch = settings.get("patch", Microworld.patch)
        self.heads = settings.get("heads", Microworld.heads)

    @property
    def clips(self) -> int:
        """How many CLIPs there are, each pretrained from another seed; the package's world has one."""
        return len(self.manifest["clips"])

    def clip(self, number: int = 0) -> nn.Module:
        """CLIP ``number``, an ``open_clip.CLIP``: a new copy at every call."""
        if not 0 <= number < self.clips:
            raise ConfigError(f"there is no clip {number} in {self.folder}: it has {self.clips}, from 0")
        return self.filled(new_clip(0, self.tokenizer, self.side, self.patch), clip_name(number))

    @cached_property
    def dit(self) -> Any:
        """The weaker ``DiTTransformer2DModel``, whose condition is the object's class alone."""
        folder = Path(__file__).parent / "checkpoints" if self.folder == SHIPPED else self.folder
        dit = new_dit(0, len(self.data.vocabulary.subjects), self.side)
        fill(dit, load_weights(folder / "dit.safetensors"), "dit.safetensors")
        return dit

    def teacher(self, kind: str = "unet", seed: int = 0) -> Teacher:
        """The teacher ``kind`` of `TEACHERS`; ``seed`` is that of fresh weights."""
        if kind not in TEACHERS:
            raise ConfigError(f"kind={shown(kind)}: one of {', '.join(TEACHERS)}")
        return TEACHERS[kind](self, seed)

    def unclip(self, seed: int) -> Teacher:
        """The UNet as Stable unCLIP is made of Stable Diffusion: the image embedding joins the time embedding
        through fresh weights, the text is empty, and the rest is the trained UNet. It is to be trained."""
        config = {name: value for name, value in self.unet.config.items() if not name.startswith("_")}
        width = self.clip().visual.output_dim  # type: ignore[union-attr]
        config |= {"class_embed_type": "projection", "projection_class_embeddings_input_dim": width}
        unet: Any = fresh(1000 + seed, type(self.unet), **config)
        unet.load_state_dict({**unet.state_dict(), **self.unet.state_dict()})
        return self.teacher_of(unet)

    def flux(self, seed: int) -> Teacher:
        """GenHancer's denoiser: its blocks, the world's widths, fresh weights. It is to be trained."""
        diffusers, clip = require("diffusers", extra="diffusers"), self.clip()
        flux = fresh(
            1000 + seed,
            diffusers.FluxTransformer2DModel,
            in_channels=4 * self.vae.config.latent_channels,
            num_layers=2,
            num_single_layers=4,
            attention_head_dim=32,
            num_attention_heads=3,
            joint_attention_dim=clip.visual.output_dim,  # type: ignore[union-attr]
            pooled_projection_dim=clip.visual.output_dim,  # type: ignore[union-attr]
            guidance_embeds=True,
            axes_dims_rope=(4, 14, 14),
        )
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
        return Teacher(flux, vae=self.vae, scheduler=scheduler, guidance=4)

    @torch.no_grad()
    def loss_ratio(self, teacher: Teacher, latents: Tensor) -> float:
        """The trained UNet's denoising loss over that of ``teacher``, under the empty text.

        A control with an untrained denoiser has a loss many times larger; by this factor it weighs as much.
        """
        generator = torch.Generator().manual_seed(0)
        scheduler = new_scheduler()
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(0, len(scheduler.alphas_cumprod), (len(latents),), generator=generator)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        target = scheduler.get_velocity(latents, noise, timesteps)
        trained = self.teacher()
        text = trained.text().expand(len(latents), -1, -1)
        errors = [one.denoise(noisy, timesteps, text) - target for one in (trained, teacher)]
        return float(errors[0].square().mean()) / float(errors[1].square().mean())


TEACHERS: dict[str, Callable[[StudyWorld, int], Teacher]] = {
    "unet": lambda world, seed: world.teacher_of(world.unet),
    "untrained": lambda world, seed: world.teacher_of(new_unet(1000 + seed, world.side, world.heads)),
    "dit": lambda world, seed: Teacher(world.dit, vae=world.vae, scheduler=new_scheduler()),
    "unclip": StudyWorld.unclip,
    "flux": StudyWorld.flux,
}


def clip_name(number: int) -> str:
    """The file of a CLIP, without its ending."""
    return f"clip-{number}" if number else "clip"


def new_dit(seed: int, subjects: int = len(VALUES["object"]), side: int = SIDE) -> nn.Module:
    """A diffusers ``DiTTransformer2DModel`` with fresh weights; its classes are the subjects.

    >>> new_dit(0).config.num_embeds_ada_norm
    8
    """
    diffusers = require("diffusers", extra="diffusers")
    return fresh(
        seed,
        diffusers.DiTTransformer2DModel,
        num_attention_heads=2,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=3,
        sample_size=side // FACTOR,
        patch_size=1,
        num_embeds_ada_norm=subjects,
    )
