"""The teacher: everything diva_rs asks of a diffusion model, behind one frozen object."""

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diva_rs._base.arguments import of_type, takes
from diva_rs._base.kinds import dense, each
from diva_rs._base.settings import integer, optional
from diva_rs.diffusion import vae as autoencoder
from diva_rs.diffusion.conditioning import Conditioning, check_inputs, conditioning_of
from diva_rs.diffusion.describe import describe
from diva_rs.diffusion.discovery import Parts
from diva_rs.diffusion.frozen import PRECISIONS, checked_device, fitted, freeze, home, moved, plain
from diva_rs.diffusion.text import TextSource, checked_text
from diva_rs.errors import ConfigError, ShapeError, shown

if TYPE_CHECKING:
    from diva_rs._native import Schedule


class Teacher:
    """A frozen diffusion model as a pure function: noisy latents, timesteps, condition -> prediction.

    Side effect: the modules given are put into eval mode and their parameters to ``requires_grad=False``, in
    place, so that none of them ever gets a ``.grad``. Nothing else of them is changed, hooked or patched.
    Where ``device`` or `to_precision` asks for another device or dtype, a copy is used instead of the module
    given (its size in memory comes on top: load the model in the wanted dtype to save that).

    Args:
        unet: a diffusers ``UNet2DConditionModel`` or ``DiTTransformer2DModel``, a pipeline that holds one, a
            folder (of a pipeline or of its ``unet``), or a repository of the Hugging Face Hub. What is not
            given below is found in the pipeline, or in the folder that the denoiser was loaded from.
        vae: a diffusers ``AutoencoderKL``. Without one, a denoiser of 3 channels works on pixels in [-1, 1].
        scheduler: the diffusers scheduler that holds the model's training noise schedule, or a native
            ``Schedule``.
        text_condition: text tokens (1 | B, L, C), used as they are instead of an encoded prompt.
        device: where the denoiser and the VAE run; by default where they are.
        added_cond_kwargs: SDXL's pooled "text_embeds" (1, D) and "time_ids" (1, 6). By default zeros, and the
            size of the image without cropping.
        label: whether the condition is to "replace" a DiT's label embedding, or to "join" that of "no class".

    Raises:
        ConfigError: the denoiser is of an unsupported kind, or needs inputs that training does not have.
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

    unet: (
        nn.Module
    )  # the frozen denoiser in use: the one given, or its copy in another dtype or on another device
    device: torch.device
    dtype: torch.dtype

    def __init__(
        self,
        unet: Any,
        vae: nn.Module | None = None,
        scheduler: Any = None,
        text_condition: Tensor | None = None,
        device: torch.device | str | None = None,
        *,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        label: str = "replace",
    ) -> None:
        if isinstance(unet, Teacher):
            raise ConfigError(
                "unet is a Teacher already: use it as it is, or make another one from its .unet"
            )
        self._parts = Parts(unet, {"vae": vae, "scheduler": scheduler})
        self._wanted_device = None if device is None else checked_device(device)
        self._precision: torch.dtype | None = None
        if added_cond_kwargs is not None:
            of_type("added_cond_kwargs", added_cond_kwargs, Mapping, "a mapping of names to tensors")
        self._added, self._label = added_cond_kwargs, label
        self._schedule: Schedule | None = None
        self._settle()
        if vae is not None:
            autoencoder.check_vae(self._parts.get("vae"), self._channels)
        way = self._conditioning
        if text_condition is not None:
            text_condition = checked_text(text_condition, way.text_width or way.width)
            if len(text_condition) != 1 and not way.text_joins:
                shape = tuple(text_condition.shape)
                raise ShapeError(
                    f"text_condition is {shape}, expected (1, L, C): this model's text is one for all"
                )
        sdxl = getattr(self._config, "addition_embed_type", None) == "text_time"
        self._text = TextSource(self._parts, text_condition, sdxl, self.device)
        for module in self.modules():
            freeze(module)

    @classmethod
    def of(cls, source: Any) -> "Teacher":
        """A teacher from whatever holds one: a denoiser, a pipeline, a folder, a Hub repository or a Teacher.

        Raises:
            ConfigError: ``source`` is none of these; the message lists what is.

        >>> Teacher.of(teacher) is teacher
        True
        """
        return source if isinstance(source, Teacher) else cls(source)

    def to_precision(self, precision: str) -> "Teacher":
        """This teacher computing in "fp32", "bf16" or "fp64".

        The denoiser given is used itself where it has that dtype already; otherwise the new teacher holds a
        converted copy. A VAE that overflows in float16 (``force_upcast``) runs in float32 instead.

        Raises:
            ConfigError: the precision is none of these.

        >>> teacher.to_precision("fp32").unet is teacher.unet
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

        Raises:
            DeviceError: this machine does not have that device.

        >>> teacher.on("cpu") is teacher
        True
        """
        device = checked_device(device)
        if device == self.device:
            return self
        other = copy.copy(self)
        other._wanted_device = device
        other._settle()
        return other

    @takes(noisy=dense(), timesteps=dense(), condition=dense())
    def denoise(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """What the model predicts (noise or velocity, as its schedule says), differentiable in the condition.

        Computed in the teacher's own dtype on its own device, whatever those of the inputs, without autocast.

        Args:
            noisy: (B, C, h, w).
            timesteps: (B,), as the model counts them; floating point for flow matching.
            condition: (B, S, `condition_width`).

        Returns:
            (B, C, h, w) in the dtype and on the device of ``noisy``; without a learned variance.

        Raises:
            ShapeError: a wrong rank, size or dtype; names the argument and what was expected.
            DeviceError: an argument on the meta device, the teacher on another.

        >>> teacher.denoise(torch.randn(2, 3, 16, 16), torch.tensor([1, 2]), torch.randn(2, 8, 24)).shape
        torch.Size([2, 3, 16, 16])
        """
        check_inputs(noisy, timesteps, condition, self._channels, self.condition_width)
        if self.unet.training:
            freeze(self.unet)  # somebody called train() on a parent: dropout would change the answer
        with plain(self.device):
            prediction = self._conditioning.predict(
                moved(noisy, self.device, self.dtype),
                moved(timesteps, self.device),
                moved(condition, self.device, self.dtype),
            )
        return moved(prediction[:, : self._channels], noisy.device, noisy.dtype)

    def native(self, checkpoint: bool = False) -> Any:
        """The native network that predicts what `denoise` does, on the same weights.

        Args:
            checkpoint: whether a step should compute each of its blocks again in the backward pass instead of
                keeping its activations.

        Raises:
            NotNative (`diva_rs.native`): the model is not one that a native network computes exactly.

        >>> type(teacher.native()).__name__
        'UNet2DCondition'
        """
        freeze(self.unet)
        given: nn.Module = self._parts.denoiser
        device, dtype = home(given, "the denoiser")
        rounded = self.dtype == torch.bfloat16 and dtype == torch.float32 and device == self.device
        return self._conditioning.native(checkpoint, given if rounded else None)

    def native_encoder(self) -> Any:
        """The native encoder that gives what `encode` does (the posterior's mean), on the VAE's weights.

        Raises:
            NotNative (`diva_rs.native`): there is no VAE (pixels), or not one that it computes exactly.
            ConfigError: the VAE that the model needs was not found.
        """
        from diva_rs.native.inspect import NotNative
        from diva_rs.native.vae import native_vae

        vae = self.vae
        if vae is None:
            raise NotNative("it works on pixels and needs no VAE")
        return native_vae(vae)

    @takes(
        images=dense(),
        seeds=optional(each(integer(0, (1 << 64) - 1), "seeds")),
        noise=optional(dense()),
        micro_batch=integer(1),
    )
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

        Raises:
            ShapeError: a wrong rank, number of channels, size or dtype.
            ConfigError: no VAE was found; both seeds and noise, or either for a pixel-space model.

        >>> teacher.encode(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 3, 16, 16])
        """
        vae = self._autoencoder()
        return autoencoder.latents_of(vae, images, self._channels, seeds, noise, micro_batch)

    def latents_of(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(C, h, w) of the latents of images of ``size`` (H, W).

        Raises:
            ShapeError: H or W is not a multiple of the VAE's downscaling.
            ConfigError: no VAE was found for a denoiser of latents.

        >>> teacher.latents_of((32, 16))
        (3, 32, 16)
        """
        vae = self._autoencoder()
        factor = 1 if vae is None else autoencoder.downscale(vae)
        autoencoder.check_size((1, 3, *size), factor)
        return (self._channels, size[0] // factor, size[1] // factor)

    def text(self, prompt: str = "") -> Tensor:
        """Text tokens (1, L, `condition_width`) to stand in the condition, without gradients, encoded once.

        Given a ``text_condition``, that one, whatever the prompt. For models whose condition has no room for
        text a single row of zeros: DiT, and Stable unCLIP, whose cross-attention reads ``text_condition`` or
        else the empty prompt.

        Raises:
            ConfigError: no text encoder or tokenizer was found, or it is of an unsupported kind.
            ShapeError: the text encoder's width is not what the denoiser reads.

        >>> teacher.text("a photo of a cat").shape
        torch.Size([1, 8, 24])
        """
        if not isinstance(prompt, str):
            raise ConfigError(f"prompt is a {type(prompt).__name__}, expected one string")
        way = self._conditioning
        if not way.text_joins or (way.text_width is None and self._text.given is None):
            return torch.zeros(1, 1, way.width, device=self.device, dtype=self.dtype)
        return self._text.tokens(prompt, way.width)

    @property
    def vae(self) -> nn.Module | None:
        """The frozen VAE; None for a model that works on pixels.

        Raises:
            ConfigError: the model needs one and none was found.

        >>> teacher.vae is None
        True
        """
        return self._autoencoder()

    @property
    def schedule(self) -> "Schedule":
        """The noise schedule that the denoiser was trained on.

        Raises:
            ConfigError: no scheduler was found, or it is of an unsupported kind.

        >>> len(teacher.schedule)
        1000
        """
        if self._schedule is None:
            from diva_rs.diffusion.schedule import schedule_from_scheduler

            self._schedule = schedule_from_scheduler(self._parts.need("scheduler"))
        return self._schedule

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of what the model denoises, at the size it was trained for.

        Raises:
            ConfigError: the denoiser's configuration has no sample_size.
        """
        size = self._config.sample_size
        if size is None:
            raise ConfigError(
                "the denoiser's configuration has no sample_size: unet.register_to_config(sample_size=64)"
            )
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        return (self._channels, int(height), int(width))

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels of the images whose latents have `latent_shape`.

        Raises:
            ConfigError: no VAE was found for a denoiser of latents, or no sample_size.
        """
        vae = self._autoencoder()
        factor = 1 if vae is None else autoencoder.downscale(vae)
        _, height, width = self.latent_shape
        return (height * factor, width * factor)

    @property
    def condition_width(self) -> int:
        """C of the condition (B, S, C)."""
        return self._conditioning.width

    def modules(self) -> list[nn.Module]:
        """The frozen modules: the denoiser, and the VAE and the text encoders as far as they are loaded.

        >>> [type(module).__name__ for module in teacher.modules()]
        ['UNet2DConditionModel']
        """
        vae = self._vae if self._vae is not None else self._parts.loaded("vae")
        encoders = [self._parts.loaded(name) for name in ("text_encoder", "text_encoder_2")]
        return [module for module in (self.unet, vae, *encoders) if isinstance(module, nn.Module)]

    def describe(self) -> str:
        """One line per part: class, parameters, dtype, device, and where it is from. Loads nothing.

        >>> print(teacher.describe())
        denoiser: UNet2DConditionModel, ... parameters, float32 on cpu, given
        condition: cross-attention, 24 wide
        vae: none, the denoiser works on pixels
        scheduler: DDPMScheduler, given
        text: (1, 8, 24) tokens, given
        """
        return describe(self._parts, self.unet, self._vae, self._text.given, self._conditioning)

    def __repr__(self) -> str:
        entry = self._conditioning.entry
        return f"Teacher({type(self.unet).__name__}, {entry}, {self.dtype} on {self.device})"

    def _settle(self) -> None:
        # Chooses or makes the denoiser for the wanted device and precision; the VAE follows when needed.
        name = f"the {type(self._parts.denoiser).__name__}"
        home(self._parts.denoiser, name)
        self.unet = freeze(fitted(self._parts.denoiser, self._wanted_device, self._precision))
        self.device, self.dtype = home(self.unet, name)
        config: Any = self.unet.config
        self._config = config
        self._channels = int(config.in_channels)
        self._vae: nn.Module | None = None
        self._conditioning: Conditioning = conditioning_of(
            self.unet, self._added, self._label, self._empty_text, self._pixels_per_latent
        )

    def _autoencoder(self) -> nn.Module | None:
        if self._vae is None:
            own = (self.device, self.dtype)
            self._vae = autoencoder.vae_of(
                self._parts, self._channels, own, self._wanted_device, self._precision
            )
        return self._vae

    def _pixels_per_latent(self) -> int:
        return autoencoder.pixels_per_latent(self._parts.get("vae"), self._channels)

    def _empty_text(self, width: int) -> Tensor:
        return self._text.tokens("", width)
