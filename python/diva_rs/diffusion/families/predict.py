"""Any model as a denoiser: a callable ``f(noisy, timesteps, condition) -> prediction``."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diva_rs.diffusion.condition import Condition, Slots
from diva_rs.diffusion.families.family import Context, Family
from diva_rs.errors import ConfigError, a_type, shown


class Predictor(nn.Module):
    """A callable as the denoiser of a teacher, with the shape of what it denoises and its slots.

    The weights of a callable that is a module, or a method of one, are the predictor's own. Those of another
    callable are not seen: they stay where and as they are.
    """

    def __init__(self, predict: Callable[..., Tensor], latent_shape: Any, width: int) -> None:
        super().__init__()
        if not callable(predict):
            raise ConfigError(f"predict is {a_type(predict)}, expected f(noisy, timesteps, condition)")
        shape = tuple(latent_shape or ())
        if not shape or not all(isinstance(side, int) and side > 0 for side in shape):
            raise ConfigError(f"latent_shape is {shown(latent_shape)}, expected sizes as (4, 64, 64)")
        self.latent_shape, self.slots = shape, Slots(tokens=width, pooled=width)
        owner = getattr(predict, "__self__", None)
        self.model: nn.Module | None = None
        if isinstance(predict, nn.Module):
            self.model, self.call = predict, "__call__"
        elif isinstance(owner, nn.Module):
            self.model, self.call = owner, predict.__name__
        else:
            self.function = _Uncopied(predict)
        if next(itertools.chain(self.parameters(), self.buffers()), None) is None:
            self.register_buffer("place", torch.zeros(()), persistent=False)  # device and dtype

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        function = self.function.value if self.model is None else getattr(self.model, self.call)
        prediction: Tensor = function(noisy, timesteps, condition)
        return prediction


def predictor(source: Any, predict: Any, latent_shape: Any, width: int | None, text: Any) -> Predictor:
    """The denoiser of `Teacher`'s argument ``predict`` and those beside it."""
    if source is not None:
        raise ConfigError("both predict and a denoiser are given: give one of them")
    if width is None and not isinstance(text, Tensor):
        raise ConfigError("predict needs condition_width, or a text_condition that has this width")
    return Predictor(predict, latent_shape, text.shape[-1] if width is None else width)


class PredictFamily(Family):
    """The condition enters through both slots: as tokens (B, S, C), and as their mean (B, C)."""

    def __init__(self, model: nn.Module, context: Context) -> None:
        super().__init__(model, context)
        self.slots = self.model.slots

    @classmethod
    def matches(cls, model: nn.Module) -> bool:
        return isinstance(model, Predictor)

    @property
    def channels(self) -> int:
        return int(self.model.latent_shape[0])

    @property
    def latent_shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.model.latent_shape
        return shape

    def predict(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        output: Tensor = self.model(noisy, timesteps, condition)
        return output

    def native(self) -> str:
        return "it is a callable"


class _Uncopied:
    """A value that copies of a module share."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Uncopied":
        return self


FAMILY = PredictFamily
