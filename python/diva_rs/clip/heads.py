"""What a library does between its tokens and its embedding, split so that only chosen tokens pay for it."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized


@dataclass(frozen=True)
class Head:
    """A LayerNorm and a projection that can be applied to any row later, or the layers that cannot wait."""

    norm: nn.LayerNorm | None
    proj: nn.Parameter | None  # the weight of an nn.Linear, (D, W)
    inside: tuple[nn.Module, ...]

    def apply(self, tokens: Tensor) -> Tensor:
        """(..., W) -> (..., W or D), through the layers that cannot wait."""
        for layer in self.inside:
            tokens = layer(tokens)
        return tokens

    def width(self, tokens: int) -> int:
        """The width of the rows after :meth:`apply`."""
        layers = [layer for outer in self.inside for layer in outer.modules()]
        widths = [getattr(layer, "out_features", None) for layer in layers]
        return next((width for width in reversed(widths) if isinstance(width, int)), tokens)

    def embed_dim(self, tokens: int) -> int:
        """The width of the embedding."""
        return self.width(tokens) if self.proj is None else int(self.proj.shape[0])


def split_head(chain: Iterable[nn.Module]) -> Head:
    """Split the layers that a library applies to its pooled token.

    ``[LayerNorm][Linear without bias]``, both optional, act on each row alone, so they can wait until tokens
    are chosen. Anything else (a bias, an MLP, dropout, a parametrised or adapted layer) is applied to every
    token right away, which is exact as well.

    >>> split_head([nn.LayerNorm(4), nn.Identity(), nn.Linear(4, 2, bias=False)]).inside
    ()
    >>> len(split_head([nn.LayerNorm(4), nn.Linear(4, 2)]).inside)
    2
    """
    live = tuple(layer for layer in chain if not _does_nothing(layer))
    match [_plain(layer) for layer in live]:
        case []:
            return Head(None, None, ())
        case [nn.LayerNorm() as norm]:
            return Head(norm, None, ())
        case [nn.Linear(weight=nn.Parameter() as weight)]:
            return Head(None, weight, ())
        case [nn.LayerNorm() as norm, nn.Linear(weight=nn.Parameter() as weight)]:
            return Head(norm, weight, ())
    return Head(None, None, live)


def _does_nothing(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Identity) or (isinstance(layer, nn.Dropout) and layer.p == 0)


def _plain(layer: nn.Module) -> nn.Module | None:
    """The layer, if it is a LayerNorm over rows or a Linear without bias and computes nothing else."""
    if is_parametrized(layer):
        return None
    if isinstance(layer, nn.LayerNorm):
        return layer if len(layer.normalized_shape) == 1 else None
    # Exactly nn.Linear: a subclass (a low-rank adapter, a quantised layer) may compute something else.
    return layer if type(layer) is nn.Linear and layer.bias is None else None
