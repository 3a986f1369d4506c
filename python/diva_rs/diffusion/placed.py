"""A teacher's models on a device and in a precision: those given, or copies of them."""

import copy
import logging

import torch
from torch import nn
from typing_extensions import Self

from diva_rs._base.tensors import available_device
from diva_rs.diffusion.discovery import Parts
from diva_rs.diffusion.families.family import Family
from diva_rs.diffusion.frozen import PRECISIONS, fitted, freeze, gib, home
from diva_rs.diffusion.vae import vae_of
from diva_rs.errors import ConfigError

_log = logging.getLogger("diva_rs")


class Placed:
    """A denoiser and its VAE on one device and in one precision.

    The modules given stay as they are: elsewhere a copy is used. With ``consume`` a module gives its weights
    up to its copy.
    """

    denoiser: nn.Module  # the one given, or its copy in another dtype or on another device
    given: nn.Module  # the denoiser that the caller gave
    family: Family
    device: torch.device
    dtype: torch.dtype
    trainable: bool  # whether the denoiser's parameters train: see `training`
    products: str | None  # the precision of its matrix products where it trains
    _vae: nn.Module | None

    def __init__(self, parts: Parts, device: torch.device | str | None, consume: bool) -> None:
        self._parts, self._consume = parts, consume
        self.given, self.trainable, self.products = parts.denoiser, False, None
        self._settled(None if device is None else available_device(device), None)

    def to_precision(self, precision: str) -> Self:
        """This teacher computing in "fp32", "bf16" or "fp64", with a converted copy where one is needed.

        A VAE that overflows in float16 (``force_upcast``) runs in float32 instead.

        >>> clip, teacher, images = diva_rs.microworld.example()
        >>> teacher.to_precision("fp32").denoiser is teacher.denoiser
        True
        >>> teacher.to_precision("bf16").dtype
        torch.bfloat16
        """
        if precision not in PRECISIONS:
            raise ConfigError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
        if PRECISIONS[precision] == self._precision:
            return self
        if self._consume and self._precision is not None and PRECISIONS[precision] != self.dtype:
            raise ConfigError(
                f"this teacher consumes its models, for {self.dtype} already: make another one, of models "
                f'that are loaded again, for precision="{precision}"'
            )
        other = self if self._consume else copy.copy(self)
        return other._settled(self._wanted_device, PRECISIONS[precision])

    def on(self, device: torch.device | str) -> Self:
        """This teacher on ``device``: itself where it is there already, otherwise one with a copy there.

        >>> clip, teacher, images = diva_rs.microworld.example()
        >>> teacher.on("cpu") is teacher
        True
        """
        device = available_device(device)
        return self if device == self.device else copy.copy(self)._settled(device, self._precision)

    def release(self) -> None:
        """With ``consume``: empty the denoiser given, of which a copy is used from here on."""
        if self._consume:
            self._parts.consume(self.given, self.denoiser)
            self.given = self.denoiser

    def training(self, precision: str = "fp32") -> Self:
        """This teacher with a denoiser whose parameters train, in eval mode.

        With "bf16" the weights stay in float32, and the matrix products run in bfloat16.

        >>> clip, teacher, images = diva_rs.microworld.example()
        >>> trained = teacher.training()
        >>> trained.trainable, all(parameter.requires_grad for parameter in trained.denoiser.parameters())
        (True, True)
        """
        mixed = precision == "bf16"
        other = copy.copy(self.to_precision("fp32" if mixed else precision))
        other.trainable, other.products = True, precision
        other.denoiser.requires_grad_()
        return other

    @property
    def vae(self) -> nn.Module | None:
        """The frozen VAE; None for a model that works on pixels. ConfigError where it needs one and has none.

        >>> clip, teacher, images = diva_rs.microworld.example()
        >>> type(teacher.vae).__name__
        'AutoencoderKL'
        """
        if self._vae is None:
            own, channels = (self.device, self.dtype), self.family.channels
            self._vae = vae_of(self._parts, channels, own, self._wanted_device, self._precision)
            if self._consume and self._precision is not None and self._vae is not None:
                self._parts.consume(self._parts.need("vae"), self._vae)
        return self._vae

    def _settled(self, device: torch.device | None, precision: torch.dtype | None) -> Self:
        """Choose or make the denoiser for a device and precision; the VAE follows when it is needed."""
        self._wanted_device, self._precision = device, precision
        name = f"the {type(self.given).__name__}"
        home(self.given, name)
        self.denoiser = freeze(fitted(self.given, device, precision)).requires_grad_(self.trainable)
        self.device, self.dtype = home(self.denoiser, name)
        if self.denoiser is not self.given and not self._consume:
            _log.info(
                "%s is in memory twice, as given (%s) and in %s on %s (%s): Teacher(..., consume=True) keeps "
                "the second alone",
                *(name, gib(self.given), self.dtype, self.device, gib(self.denoiser)),
            )
        self._vae = None
        return self
