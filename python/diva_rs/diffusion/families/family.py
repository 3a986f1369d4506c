"""What a family of denoisers answers about one model: slots, text, prediction, native network."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diva_rs.diffusion.condition import Condition, Slots
from diva_rs.diffusion.text import Parts, encode_prompts, pooled_prompts
from diva_rs.errors import ConfigError, ShapeError

ENCODE = "give what encodes texts as (M, L, C), Judge(teacher, encode=f)"  # where prompts have no tokens


@dataclass(frozen=True)
class Context:
    """What a family may need of the teacher around its model; each is computed when it is called."""

    text: Callable[[int], Tensor]  # width -> tokens (1, L, width) of the empty prompt or of text_condition
    pixels_per_latent: Callable[[], int]  # along a side
    pooled_width: Callable[[], int | None] = lambda: None  # of SDXL's second text encoder, where it is known
    part: Callable[[str], Any | None] = lambda name: None  # of the pipeline, by diffusers' name


@dataclass(frozen=True)
class NativePlan:
    """How a native network stands in for a denoiser.

    Attributes:
        kind: the kind of ``_native.Network``.
        fields: configuration fields that do not follow from the modules.
        fixed: inputs that are the same in every step.
    """

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Tensor] = field(default_factory=dict)


class Family(ABC):
    """One denoiser and the way into it. A subclass is a family; `matches` says which models belong to it.

    A subclass sets ``slots`` (and ``channels``, ``latent_shape`` where the model has no diffusers
    configuration), names its models by ``of`` or `matches`, and implements `predict`; the other members have
    defaults.
    """

    of: ClassVar[str] = ""  # the class of its models in their library
    supported: ClassVar[str] = ""  # the models of this family, for error messages
    folder: ClassVar[str] = "transformer"  # the denoiser's name in diffusers' pipelines
    options: ClassVar[frozenset[str]] = frozenset()  # keyword arguments of Teacher that are for this family
    text_encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    pooling: ClassVar[tuple[str, ...]] = ()  # the text encoders whose pooled outputs make the pooled vector

    flow: ClassVar[bool] = False  # whether its models are trained by flow matching alone

    slots: Slots
    text_width: int | None = None  # of the model's text tokens; None for a model that reads no text
    text_joins: bool = True  # whether text tokens may stand in the condition beside the visual ones
    pooled_noise: Tensor | None = None  # (V,): deviation of the noise that a step adds to a pooled condition

    def __init__(self, model: nn.Module, context: Context) -> None:
        self.model: Any = model
        self.context = context

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        """Whether this family's code fits ``model``; by default, whether its class derives from `of`."""
        return cls.of in {base.__name__ for base in type(model).__mro__}

    @abstractmethod
    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Raw output (B, C or 2C, ...), differentiable in every slot of ``condition``.

        The inputs are on the model's device and in its dtype.
        """

    @property
    def entry(self) -> str:
        """How the condition enters, for people."""
        shared = " and ".join(self.slots.names)
        return ", ".join(f"{name or shared}, {width} wide" for name, width in self.slots.parts.items())

    @property
    def channels(self) -> int:
        """C of what the model denoises."""
        return int(self.model.config.in_channels)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, h, w) of what the model denoises, at the size it was trained for."""
        size = self.model.config.sample_size
        if size is None:
            raise ConfigError(
                "the denoiser's configuration has no sample_size: unet.register_to_config(sample_size=64)"
            )
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        return (self.channels, int(height), int(width))

    def encode(self, prompts: Sequence[str], parts: Parts) -> Tensor:
        """Text tokens (M, L, `text_width`) of M prompts, as in the model's own pipeline."""
        return encode_prompts(prompts, parts, self.text_encoders, penultimate=False)

    def check_sides(self, noisy: Tensor, patch: int) -> None:
        """Raise ShapeError unless both sides of the latents are multiples of ``patch``."""
        if noisy.ndim != 4 or noisy.shape[2] % patch or noisy.shape[3] % patch:
            raise ShapeError(
                f"noisy is {tuple(noisy.shape)}: this model takes (B, C, h, w), h and w multiples of {patch}"
            )

    def conditions(self, prompts: Sequence[str], parts: Parts) -> Tensor:
        """The conditions (M, L, C) that M prompts make in all slots, as in the model's own pipeline.

        Raises ConfigError for a model that reads no text where its condition stands.
        """
        if self.pooling and self.slots.tokens is not None and self.slots.pooled is not None:
            tokens, pooled = self.encode(prompts, parts), pooled_prompts(prompts, parts.get, self.pooling)
            if pooled is None:
                raise ConfigError(f"no text encoder was found for the pooled slot: {ENCODE}")
            every = pooled.to(tokens).unsqueeze(1).expand(-1, tokens.shape[1], -1)  # whose mean is the vector
            return torch.cat((tokens, every), dim=2)
        if not self.text_joins or self.text_width is None:
            raise ConfigError(f"a {type(self.model).__name__} reads no text: {ENCODE}")
        return self.encode(prompts, parts)

    def native(self) -> NativePlan | str:
        """The native network for this model, or the reason why there is none."""
        return f"there is no native network for a {type(self.model).__name__}"
