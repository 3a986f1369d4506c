"""The teacher: everything diva_rs needs of a generative model, behind one object."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

import diva_rs._native as _native
from diva_rs.diffusion import vae as autoencoder
from diva_rs.diffusion.condition import Condition, Slots, check_noisy
from diva_rs.diffusion.describe import describe
from diva_rs.diffusion.discovery import Parts
from diva_rs.diffusion.families import make
from diva_rs.diffusion.families.family import ENCODE, Context
from diva_rs.diffusion.families.predict import predictor
from diva_rs.diffusion.frozen import freeze, moved, no_autocast
from diva_rs.diffusion.placed import Placed
from diva_rs.diffusion.schedule import schedule_from_scheduler
from diva_rs.diffusion.text import TextSource
from diva_rs.errors import ConfigError


class Teacher(Placed):
    """A diffusion model as a pure function: noisy latents, timesteps, condition -> prediction.

    The modules given are put into eval mode and frozen, in place. Where ``device`` or `to_precision` asks for
    another device or dtype, a copy is used instead of the module given: two of them in memory, unless
    ``consume`` is set.

    Args:
        unet: a denoiser of a known family (`diva_rs.diffusion.families`), a pipeline that holds one, a folder
            (of a pipeline or of its denoiser), or a repository of the Hugging Face Hub. What is not given
            below is found in the pipeline, or in the folder that the denoiser was loaded from.
        vae: a diffusers autoencoder of images: ``AutoencoderKL``, ``AutoencoderTiny``, ``AutoencoderDC``.
            Without one, a denoiser of 3 channels works on pixels in [-1, 1].
        scheduler: the diffusers scheduler that holds the model's training noise schedule, or a native
            ``Schedule``.
        text_condition: text tokens (1 | B, L, C), used as they are instead of an encoded prompt.
        device: where the denoiser and the VAE run; by default where they are.
        denoiser: another name for ``unet``.
        predict: any model instead of a denoiser: ``f(noisy, timesteps, condition) -> prediction``, where
            ``condition`` is a `Condition` with ``tokens`` (B, S, C) and ``pooled`` (B, C), their mean. Its
            inputs are in the recipe's precision; its weights are frozen where it is a module or its method.
        latent_shape: (C, h, w) of what ``predict`` denoises.
        condition_width: C of the condition of ``predict``; by default that of ``text_condition``.
        consume: whether a denoiser or VAE that is given gives its weights up to its copy. Such a module is
            empty once a trainer is made (the VAE after its first batch), and its use raises ConfigError. The
            teacher itself is converted in place, once.
        options: of the denoiser's family. A UNet of SDXL takes ``added_cond_kwargs``, its pooled
            "text_embeds" (1, D) and "time_ids" (1, 6), by default zeros and the size of the image without
            cropping (SDXL's refiner: 5 ids, with an aesthetic score of 6), and ``slot``: "tokens", or "both"
            for a condition that fills the pooled text, too. A UNet of Stable unCLIP takes
            ``noise_level``, that of the image embedding for which the condition stands, by default 0: the
            UNet reads what its pipeline makes of the embedding at that level. A training step draws the noise
            for each draw, `denoise` by itself adds none.
            A DiT takes ``label``: whether the condition is to "replace" the label embedding, or to "join"
            that of "no class". Flux and Stable Diffusion 3 take ``slot``, which of the slots "tokens" and
            "pooled" the condition fills, by default "both", and ``pooled_projections`` (1, V), the text's
            pooled vector beside a condition that fills the tokens. Flux takes ``guidance``, the scale that
            guidance-distilled models read, by default 3.5.

    >>> from diffusers import DDPMScheduler
    >>> world = diva_rs.microworld.Microworld()
    >>> text = world.encode([""])
    >>> teacher = Teacher(world.unet, vae=world.vae, scheduler=DDPMScheduler(), text_condition=text)
    >>> teacher.latent_shape, teacher.image_size, teacher.condition_width
    ((16, 6, 6), (48, 48), 64)
    >>> condition = torch.randn(2, 5, 64, requires_grad=True)
    >>> prediction = teacher.denoise(torch.randn(2, 16, 6, 6), torch.tensor([10, 500]), condition)
    >>> prediction.square().mean().backward()
    >>> condition.grad.shape, any(p.grad is not None for p in world.unet.parameters())
    (torch.Size([2, 5, 64]), False)
    """

    slots: Slots  # which slots of the denoiser carry the condition, by their width
    condition_width: int  # C of the condition (B, S, C)

    def __init__(
        self,
        unet: Any = None,
        vae: nn.Module | None = None,
        scheduler: Any = None,
        text_condition: Tensor | None = None,
        device: torch.device | str | None = None,
        *,
        denoiser: Any = None,
        predict: Callable[[Tensor, Tensor, Condition], Tensor] | None = None,
        latent_shape: tuple[int, ...] | None = None,
        condition_width: int | None = None,
        consume: bool = False,
        **options: Any,
    ) -> None:
        source = unet if denoiser is None else denoiser
        if isinstance(source, Teacher):
            raise ConfigError("unet is a Teacher: use it as it is, or make another one from its .denoiser")
        if predict is not None:
            source = predictor(source, predict, latent_shape, condition_width, text_condition)
        self._options = options
        super().__init__(Parts(source, {"vae": vae, "scheduler": scheduler}), device, consume)
        if vae is not None:
            autoencoder.check_vae(self._parts.get("vae"), self.family.channels)
        if text_condition is not None and self.slots.split is not None:
            raise ConfigError(
                f"text_condition is given, but the condition ({self.family.entry}) leaves no slot to text: "
                "leave it out, or give the condition one slot, as Teacher(..., slot='tokens')"
            )
        text_width = self.family.text_width or self.condition_width
        self._text = TextSource(self._parts, text_condition, text_width, self.family.text_joins, self.device)
        for module in self.modules():
            freeze(module)

    @classmethod
    def of(cls, source: Any) -> "Teacher":
        """A teacher from a denoiser, a pipeline, a folder, a Hub repository or a Teacher.

        >>> clip, teacher, images = diva_rs.microworld.example()
        >>> Teacher.of(teacher) is teacher
        True
        """
        return source if isinstance(source, Teacher) else cls(source)

    def denoise(self, noisy: Tensor, timesteps: Tensor, condition: Tensor | Condition) -> Tensor:
        """What the model predicts (noise or velocity, as its schedule says), differentiable in the condition.

        The prediction (B, C, h, w), without a learned variance, has the dtype and device of ``noisy``. It is
        computed in the teacher's own dtype on its own device, also under the caller's autocast.

        Args:
            noisy: (B, C, h, w).
            timesteps: (B,), as the model counts them; floating point for flow matching.
            condition: (B, S, `condition_width`), or a `Condition` whose `slots` are filled.

        >>> clip, teacher, images = diva_rs.microworld.example()
        >>> teacher.denoise(torch.randn(2, 16, 6, 6), torch.tensor([1, 2]), torch.randn(2, 8, 64)).shape
        torch.Size([2, 16, 6, 6])
        """
        channels = self.family.channels
        check_noisy(noisy, timesteps, channels)
        condition = self.slots.checked(condition, len(noisy))
        if self.denoiser.training:
            self.denoiser.eval()  # a parent's train() was called: dropout would change the prediction
        mixed = torch.autocast(self.device.type, torch.bfloat16) if self.products == "bf16" else None
        with mixed or no_autocast(self.device):
            prediction = self.family.predict(
                moved(noisy, self.device, self.dtype),
                moved(timesteps, self.device),
                condition.map(lambda slot: moved(slot, self.device, self.dtype)),
            )
        return moved(prediction[:, :channels], noisy.device, noisy.dtype)

    def encode(
        self,
        images: Tensor,
        seeds: Sequence[int] | None = None,
        noise: Tensor | None = None,
        micro_batch: int = 8,
    ) -> Tensor:
        """The latents that the model denoises, without gradients; in pixel space the images themselves.

        They are (B, C, h, w), shifted and scaled, in the dtype and on the device of ``images``.

        Args:
            images: (B, 3, H, W) in [-1, 1] (not checked here), H and W multiples of the VAE's downscaling.
            seeds: one per sample, to sample the posterior with noise drawn on the host, the same everywhere.
            noise: (B, C, h, w) standard normal, to sample the posterior with. Without both: its mean.
            micro_batch: images per pass of the VAE.

        >>> clip, teacher, images = diva_rs.microworld.example()
        >>> teacher.encode(2 * images - 1).shape
        torch.Size([8, 16, 6, 6])
        """
        return autoencoder.latents_of(self.vae, images, self.family.channels, seeds, noise, micro_batch)

    def latents_of(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(C, h, w) of the latents of images of ``size`` (H, W).

        >>> clip, teacher, images = diva_rs.microworld.example()
        >>> teacher.latents_of((32, 16))
        (16, 4, 2)
        """
        factor = autoencoder.downscale(self.vae)
        autoencoder.check_size((1, 3, *size), factor)
        return (self.family.channels, size[0] // factor, size[1] // factor)

    def text(self, prompt: str = "") -> Tensor:
        """Text tokens (1, L, `condition_width`) to stand in the condition, without gradients, encoded once.

        A given ``text_condition`` is used for every prompt. Models whose condition has no room for text get
        a single row of zeros: DiT, and Stable unCLIP, whose cross-attention reads ``text_condition`` or else
        the empty prompt.

        >>> clip, teacher, images = diva_rs.microworld.example()
        >>> teacher.text("a photo of a cat").shape
        torch.Size([1, 26, 64])
        """
        family = self.family
        if not family.text_joins or (family.text_width is None and self._text.given is None):
            return torch.zeros(1, 1, self.condition_width, device=self.device, dtype=self.dtype)
        return self._text.tokens(prompt, self.condition_width, family.encode)

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """The conditions (M, L, `condition_width`) that M prompts make, without gradients: text tokens, and
        behind them the pooled vector of a model whose condition fills both slots.

        Raises ConfigError for a model that has no text encoder or a ``text_condition``.

        >>> clip, teacher, images = diva_rs.microworld.example()
        >>> teacher.texts(["a cat", "a dog"])
        Traceback (most recent call last):
        diva_rs.errors.ConfigError: this teacher has one text_condition for every prompt: give ...
        """
        if self._text.given is not None:
            raise ConfigError(f"this teacher has one text_condition for every prompt: {ENCODE}")
        return self._text.encoded(prompts, self.condition_width, self.family.conditions)

    @property
    def unet(self) -> nn.Module:
        """The denoiser."""
        return self.denoiser

    @cached_property
    def schedule(self) -> _native.Schedule:
        """The noise schedule that the denoiser was trained on.

        >>> clip, teacher, images = diva_rs.microworld.example()
        >>> len(teacher.schedule)
        1000
        """
        schedule = schedule_from_scheduler(self._parts.need("scheduler"))
        if self.family.flow and schedule.prediction_type != "flow":
            raise ConfigError(
                f"a {type(self.given).__name__} is trained by flow matching, but the scheduler's target is "
                f"{schedule.prediction_type}: give diffusers' FlowMatchEulerDiscreteScheduler"
            )
        return schedule

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, h, w) of what the model denoises, at the size it was trained for."""
        return self.family.latent_shape

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels of the images whose latents have `latent_shape`."""
        (height, width), factor = self.latent_shape[-2:], autoencoder.downscale(self.vae)
        return (height * factor, width * factor)

    def modules(self) -> list[nn.Module]:
        """The denoiser, and the VAE and the text encoders as far as they are loaded."""
        vae = self._vae if self._vae is not None else self._parts.loaded("vae")
        encoders = [self._parts.loaded(name) for name in self.family.text_encoders]
        return [module for module in (self.denoiser, vae, *encoders) if isinstance(module, nn.Module)]

    def describe(self) -> str:
        """One line per part: class, parameters, dtype, device, and where it is from. Loads nothing.

        >>> clip, teacher, images = diva_rs.microworld.example()
        >>> print(teacher.describe())
        denoiser: UNet2DConditionModel, 2.2 million parameters, float32 on cpu, given
        condition: cross-attention, 64 wide
        vae: AutoencoderKL, 709,659 parameters, float32 on cpu, given
        scheduler: DDPMScheduler, given
        text: (1, 26, 64) tokens, given
        """
        return describe(self._parts, self.denoiser, self._vae, self._text.given, self.family)

    def __repr__(self) -> str:
        return f"Teacher({type(self.denoiser).__name__}, {self.family.entry}, {self.dtype} on {self.device})"

    def _settled(self, device: torch.device | None, precision: torch.dtype | None) -> Self:
        super()._settled(device, precision)
        # Methods and no closures: a teacher is copied, and sent to worker processes.
        context = Context(self._empty_text, self._usual_downscale, self._parts.pooled_width, self._parts.get)
        self.family = make(self.denoiser, context, self._options)
        self.slots, self.condition_width = self.family.slots, self.family.slots.width
        return self

    def _empty_text(self, width: int) -> Tensor:
        return self._text.tokens("", width, self.family.encode)

    def _usual_downscale(self) -> int:
        return autoencoder.usual_downscale(self._parts, self.family.channels)
