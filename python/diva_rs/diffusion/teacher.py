"""The teacher: everything diva_rs asks of a generative model, behind one object."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs._base.tensors import available_device
from diva_rs._native import Schedule
from diva_rs.diffusion import vae as autoencoder
from diva_rs.diffusion.condition import Condition, Slots
from diva_rs.diffusion.describe import describe
from diva_rs.diffusion.discovery import Parts
from diva_rs.diffusion.families import make
from diva_rs.diffusion.families.family import Context, Family
from diva_rs.diffusion.families.predict import Predictor
from diva_rs.diffusion.frozen import PRECISIONS, autocast, fitted, freeze, home, moved, no_autocast
from diva_rs.diffusion.schedule import schedule_from_scheduler
from diva_rs.diffusion.text import TextSource, checked_text
from diva_rs.errors import ConfigError, ShapeError, a_type, shown


class Teacher:
    """A diffusion model as a pure function: noisy latents, timesteps, condition -> prediction.

    Side effect: the modules given are put into eval mode and their parameters to ``requires_grad=False``, in
    place, until `set_trainable`. Where ``device`` or `to_precision` asks for another device or dtype, a copy
    is used instead of the module given, which costs its size in memory on top.

    Args:
        unet: a denoiser of a known family (`diva_rs.diffusion.families`), a pipeline that holds one, a folder
            (of a pipeline or of its denoiser), or a repository of the Hugging Face Hub. What is not given
            below is found in the pipeline, or in the folder that the denoiser was loaded from.
        vae: a diffusers ``AutoencoderKL``. Without one, a denoiser of 3 channels works on pixels in [-1, 1].
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
        options: of the denoiser's family. A UNet of SDXL takes ``added_cond_kwargs``, its pooled
            "text_embeds" (1, D) and "time_ids" (1, 6), by default zeros and the size of the image without
            cropping. A DiT takes ``label``: whether the condition is to "replace" the label embedding, or to
            "join" that of "no class".

    Raises:
        ConfigError: the denoiser belongs to no family, or needs inputs that training does not have.
        ShapeError: ``text_condition`` or ``added_cond_kwargs`` has not the width that the denoiser reads.
        WeightsError: a folder's weights are damaged or incomplete.
        DeviceError: the denoiser lies on several devices, or ``device`` is not there.

    >>> from diffusers import DDPMScheduler
    >>> teacher = Teacher(unet, scheduler=DDPMScheduler(), text_condition=torch.zeros(1, 8, 24))
    >>> teacher.latent_shape, teacher.image_size, teacher.condition_width
    ((3, 16, 16), (16, 16), 24)
    >>> condition = torch.randn(2, 5, 24, requires_grad=True)
    >>> prediction = teacher.denoise(torch.randn(2, 3, 16, 16), torch.tensor([10, 500]), condition)
    >>> prediction.square().mean().backward()
    >>> condition.grad.shape, any(p.grad is not None for p in unet.parameters())
    (torch.Size([2, 5, 24]), False)
    """

    denoiser: nn.Module  # the one given, or its copy in another dtype or on another device
    family: Family
    device: torch.device
    dtype: torch.dtype
    _vae: nn.Module | None

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
        **options: Any,
    ) -> None:
        source = unet if denoiser is None else denoiser
        if isinstance(source, Teacher):
            raise ConfigError(
                "unet is a Teacher already: use it as it is, or make another one from its .denoiser"
            )
        if predict is not None:
            if source is not None:
                raise ConfigError("both predict and a denoiser are given: give one of them")
            if condition_width is None and isinstance(text_condition, Tensor):
                condition_width = text_condition.shape[-1]
            if condition_width is None:
                raise ConfigError("predict needs condition_width, or a text_condition that has this width")
            source = Predictor(predict, latent_shape, condition_width)
        self._parts = Parts(source, {"vae": vae, "scheduler": scheduler})
        self._wanted_device = None if device is None else available_device(device)
        self._precision: torch.dtype | None = None
        self._options = options
        self._schedule: Schedule | None = None
        self._trainable = False
        self._compute: torch.dtype | None = None  # of matrix products, where autocast chooses it
        self._settle()
        if vae is not None:
            autoencoder.check_vae(self._parts.get("vae"), self.family.channels)
        if text_condition is not None:
            text_condition = checked_text(text_condition, self.family.text_width or self.condition_width)
            if len(text_condition) != 1 and not self.family.text_joins:
                shape = tuple(text_condition.shape)
                raise ShapeError(
                    f"text_condition is {shape}, expected (1, L, C): this model's text is one for all"
                )
        self._text = TextSource(self._parts, text_condition, self.device)
        for module in self.modules():
            freeze(module)

    @classmethod
    def of(cls, source: Any) -> "Teacher":
        """A teacher from a denoiser, a pipeline, a folder, a Hub repository or a Teacher.

        >>> Teacher.of(teacher) is teacher
        True
        """
        return source if isinstance(source, Teacher) else cls(source)

    def to_precision(self, precision: str) -> "Teacher":
        """This teacher computing in "fp32", "bf16" or "fp64".

        The denoiser given is used itself where it has that dtype already; otherwise the new teacher holds a
        converted copy. A VAE that overflows in float16 (``force_upcast``) runs in float32 instead.

        >>> teacher.to_precision("fp32").denoiser is teacher.denoiser
        True
        >>> teacher.to_precision("bf16").dtype
        torch.bfloat16
        """
        if not isinstance(precision, str) or precision not in PRECISIONS:
            raise ConfigError(f"precision is {shown(precision)}, expected one of {', '.join(PRECISIONS)}")
        if PRECISIONS[precision] == self._precision:
            return self
        other = copy.copy(self)
        other._precision = PRECISIONS[precision]
        other._settle()
        return other

    def on(self, device: torch.device | str) -> "Teacher":
        """This teacher on ``device``: itself where it is there already, otherwise one with a copy there.

        >>> teacher.on("cpu") is teacher
        True
        """
        device = available_device(device)
        if device == self.device:
            return self
        other = copy.copy(self)
        other._wanted_device = device
        other._settle()
        return other

    def mixed(self) -> "Teacher":
        """This teacher with its matrix products in bfloat16, by autocast over weights of their own dtype.

        >>> teacher.mixed().denoise(torch.ones(1, 3, 16, 16), torch.tensor([1]), torch.ones(1, 8, 24)).dtype
        torch.float32
        """
        other = copy.copy(self)
        other._compute = torch.bfloat16
        return other

    def set_trainable(self, trainable: bool) -> None:
        """Let the denoiser's parameters train, or freeze them again. A denoiser that trains runs in PyTorch.

        It stays in eval mode. `denoise` is then differentiable in the parameters of `denoiser`, which is a
        copy of the module given where `to_precision` or `on` made one.

        >>> teacher.set_trainable(True)
        >>> all(parameter.requires_grad for parameter in teacher.denoiser.parameters())
        True
        >>> teacher.set_trainable(False)
        """
        self._trainable = trainable
        self.denoiser.requires_grad_(trainable)

    @property
    def trainable(self) -> bool:
        """Whether the denoiser's parameters train."""
        return self._trainable

    def denoise(self, noisy: Tensor, timesteps: Tensor, condition: Tensor | Condition) -> Tensor:
        """What the model predicts (noise or velocity, as its schedule says), differentiable in the condition.

        Computed in the teacher's own dtype on its own device, without autocast.

        Args:
            noisy: (B, C, h, w).
            timesteps: (B,), as the model counts them; floating point for flow matching.
            condition: (B, S, `condition_width`), or a `Condition` whose `slots` are filled.

        Returns:
            (B, C, h, w) in the dtype and on the device of ``noisy``; without a learned variance.

        Raises:
            ShapeError: a wrong rank, size or dtype; names the argument and what was expected.

        >>> teacher.denoise(torch.randn(2, 3, 16, 16), torch.tensor([1, 2]), torch.randn(2, 8, 24)).shape
        torch.Size([2, 3, 16, 16])
        """
        channels = self.family.channels
        _check_inputs(noisy, timesteps, channels)
        if isinstance(condition, Tensor):
            _check_condition("condition", condition, (len(noisy), None, self.condition_width))
            condition = self.slots.fill(condition)
        if self.denoiser.training:
            self.denoiser.eval()  # a parent's train() was called: dropout would change the prediction
        computing = autocast(self.device, self._compute) if self._compute else no_autocast(self.device)
        with computing:
            prediction = self.family.predict(
                moved(noisy, self.device, self.dtype),
                moved(timesteps, self.device),
                self._here(condition, len(noisy)),
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

        Args:
            images: (B, 3, H, W) in [-1, 1] (not checked here), H and W multiples of the VAE's downscaling.
            seeds: one per sample, to sample the posterior with noise drawn on the host, the same everywhere.
            noise: (B, C, h, w) standard normal, to sample the posterior with. Without both: its mean.
            micro_batch: images per pass of the VAE.

        Returns:
            (B, C, h, w), shifted and scaled, in the dtype and on the device of ``images``.

        >>> teacher.encode(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 3, 16, 16])
        """
        return autoencoder.latents_of(self.vae, images, self.family.channels, seeds, noise, micro_batch)

    def latents_of(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(C, h, w) of the latents of images of ``size`` (H, W).

        >>> teacher.latents_of((32, 16))
        (3, 32, 16)
        """
        factor = self._factor()
        autoencoder.check_size((1, 3, *size), factor)
        return (self.family.channels, size[0] // factor, size[1] // factor)

    def text(self, prompt: str = "") -> Tensor:
        """Text tokens (1, L, `condition_width`) to stand in the condition, without gradients, encoded once.

        A given ``text_condition`` is used for every prompt. Models whose condition has no room for text get
        a single row of zeros: DiT, and Stable unCLIP, whose cross-attention reads ``text_condition`` or else
        the empty prompt.

        >>> teacher.text("a photo of a cat").shape
        torch.Size([1, 8, 24])
        """
        if not isinstance(prompt, str):
            raise ConfigError(f"prompt is {a_type(prompt)}, expected one string")
        family = self.family
        if not family.text_joins or (family.text_width is None and self._text.given is None):
            return torch.zeros(1, 1, self.condition_width, device=self.device, dtype=self.dtype)
        return self._text.tokens(prompt, self.condition_width, family.encode)

    @property
    def unet(self) -> nn.Module:
        """The denoiser."""
        return self.denoiser

    @property
    def given(self) -> nn.Module:
        """The denoiser that the caller gave, of which `denoiser` may be a copy."""
        return self._parts.denoiser

    @property
    def vae(self) -> nn.Module | None:
        """The frozen VAE; None for a model that works on pixels. ConfigError where it needs one and has none.

        >>> teacher.vae is None
        True
        """
        if self._vae is None:
            own, channels = (self.device, self.dtype), self.family.channels
            self._vae = autoencoder.vae_of(self._parts, channels, own, self._wanted_device, self._precision)
        return self._vae

    @property
    def schedule(self) -> Schedule:
        """The noise schedule that the denoiser was trained on.

        >>> len(teacher.schedule)
        1000
        """
        if self._schedule is None:
            self._schedule = schedule_from_scheduler(self._parts.need("scheduler"))
        return self._schedule

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, h, w) of what the model denoises, at the size it was trained for."""
        return self.family.latent_shape

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels of the images whose latents have `latent_shape`."""
        factor = self._factor()
        height, width = self.latent_shape[-2:]
        return (height * factor, width * factor)

    @property
    def slots(self) -> Slots:
        """Which slots of the denoiser carry the condition, by their width."""
        return self.family.slots

    @property
    def condition_width(self) -> int:
        """C of the condition (B, S, C)."""
        return self.family.slots.width

    def modules(self) -> list[nn.Module]:
        """The denoiser, and the VAE and the text encoders as far as they are loaded.

        >>> [type(module).__name__ for module in teacher.modules()]
        ['UNet2DConditionModel']
        """
        vae = self._vae if self._vae is not None else self._parts.loaded("vae")
        encoders = [self._parts.loaded(name) for name in self.family.text_encoders]
        return [module for module in (self.denoiser, vae, *encoders) if isinstance(module, nn.Module)]

    def describe(self) -> str:
        """One line per part: class, parameters, dtype, device, and where it is from. Loads nothing.

        >>> print(teacher.describe())
        denoiser: UNet2DConditionModel, ... parameters, float32 on cpu, given
        condition: cross-attention, 24 wide
        vae: none, the denoiser works on pixels
        scheduler: DDPMScheduler, given
        text: (1, 8, 24) tokens, given
        """
        return describe(self._parts, self.denoiser, self._vae, self._text.given, self.family)

    def __repr__(self) -> str:
        model = type(self.denoiser).__name__
        return f"Teacher({model}, {self.family.entry}, {self.dtype} on {self.device})"

    def _settle(self) -> None:
        # Chooses or makes the denoiser for the wanted device and precision; the VAE follows when needed.
        name = f"the {type(self.given).__name__}"
        home(self.given, name)
        self.denoiser = freeze(fitted(self.given, self._wanted_device, self._precision))
        self.denoiser.requires_grad_(self._trainable)
        self.device, self.dtype = home(self.denoiser, name)
        self._vae = None
        context = Context(self._empty_text, self._pixels_per_latent)
        self.family = make(self.denoiser, context, self._options)

    def _here(self, condition: Condition, batch: int) -> Condition:
        found = {}
        for name in self.slots.names:
            slot = getattr(condition, name)
            if slot is None:
                raise ShapeError(f"condition.{name} is None, but this denoiser has that slot")
            sizes = (batch, None, self.condition_width) if name == "tokens" else (batch, self.condition_width)
            _check_condition(f"condition.{name}", slot, sizes)
            found[name] = moved(slot, self.device, self.dtype)
        return Condition(**found)

    def _factor(self) -> int:
        return 1 if self.vae is None else autoencoder.downscale(self.vae)

    def _pixels_per_latent(self) -> int:
        return autoencoder.pixels_per_latent(self._parts.get("vae"), self.family.channels)

    def _empty_text(self, width: int) -> Tensor:
        return self._text.tokens("", width, self.family.encode)


def _check_inputs(noisy: Tensor, timesteps: Tensor, channels: int) -> None:
    if noisy.ndim < 2 or noisy.shape[1] != channels or 0 in noisy.shape or not noisy.is_floating_point():
        raise ShapeError(
            f"noisy is {_shown(noisy)}, expected floating point (B, {channels}, h, w), nothing of it empty"
        )
    batch = len(noisy)
    if tuple(timesteps.shape) != (batch,) or timesteps.dtype == torch.bool:
        raise ShapeError(f"timesteps is {_shown(timesteps)}, expected numbers ({batch},), one per sample")


def _check_condition(name: str, slot: Tensor, sizes: tuple[int | None, ...]) -> None:
    shape = tuple(slot.shape)
    fits = len(shape) == len(sizes) and 0 not in shape
    fits = fits and all(size in (None, found) for found, size in zip(shape, sizes, strict=True))
    if not fits or not slot.is_floating_point():
        expected = ", ".join("S" if size is None else str(size) for size in sizes)
        positions = " with S > 0" if None in sizes else ""
        raise ShapeError(f"{name} is {_shown(slot)}, expected floating point ({expected}){positions}")


def _shown(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
