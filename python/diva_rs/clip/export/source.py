"""What a model computes, in terms that every layout shares, and its weights by open_clip's keys."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from diva_rs.errors import ConfigError

LAST, ARGMAX = "last", "argmax"  # where the text is read: at its last token, or at the highest token number


@dataclass(frozen=True)
class Blocks:
    """A stack of pre-norm transformer blocks, by the names of transformers' configurations."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int  # width of the MLPs' hidden layer
    hidden_act: str  # "quick_gelu", "gelu" or "gelu_pytorch_tanh"
    layer_norm_eps: float


@dataclass(frozen=True)
class TextTower:
    """A text tower."""

    blocks: Blocks
    context: int
    vocab: int
    pool: str | int  # LAST, ARGMAX, or the token at whose first place the text is read


@dataclass(frozen=True)
class Pixels:
    """How pixels become the tower's input."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Literal["shortest", "squash"]  # shorter side and centre crop, or both sides
    interpolation: Literal["bicubic", "bilinear"]


@dataclass(frozen=True)
class Source:
    """A CLIP or SigLIP in the terms that every layout shares."""

    family: Literal["clip", "siglip"]
    state: dict[str, Tensor]  # by open_clip's keys
    embed_dim: int
    image: int  # side, in pixels
    patch: int
    vision: Blocks
    text: TextTower | None
    pixels: Pixels


def alike(values: Iterable[Any], what: str) -> Any:
    """The one value that all have, or ConfigError."""
    found = set(values)
    if len(found) != 1:
        shown = ", ".join(sorted(map(str, found))) or "none"
        raise ConfigError(f"{what} differs within the tower ({shown}): no other layout can express that")
    return found.pop()


def activation_of(layer: nn.Module, where: str) -> str:
    """The activation by transformers' name, or ConfigError."""
    if type(layer).__name__ == "QuickGELU":
        return "quick_gelu"
    if isinstance(layer, nn.GELU):
        return "gelu_pytorch_tanh" if layer.approximate == "tanh" else "gelu"
    if type(layer).__name__ == "GELUTanh":  # timm
        return "gelu_pytorch_tanh"
    raise ConfigError(f"{where} is a {type(layer).__name__}: only QuickGELU and GELU can be exported")


def square(size: Any, what: str) -> int:
    """The side of a square, or ConfigError."""
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if sides[0] != sides[1]:
        raise ConfigError(f"{what} is {sides[0]} x {sides[1]}: the other layouts have squares only")
    return int(sides[0])
