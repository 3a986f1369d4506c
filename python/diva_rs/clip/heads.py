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

    ``[LayerNorm][Linear without bias]``, both optional, can wait until tokens are chosen, for they act on
    each row alone and the native bridge computes them. Anything else (a bias, an MLP, dropout, another
    norm, a parametrised or adapted layer) is applied to every token right away, which is exact as well.

    >>> split_head([nn.LayerNorm(4), nn.Identity(), nn.Linear(4, 2, bias=False)]).inside
    ()
    >>> len(split_head([nn.LayerNorm(4), nn.Linear(4, 2)]).inside)
    2
    """
    live = [layer for layer in chain if not _does_nothing(layer)]
    rest = list(live)
    norm = rest.pop(0) if rest and _is_plain_norm(rest[0]) else None
    linear = rest.pop(0) if rest and _is_plain_linear(rest[0]) else None
    if rest:
        return Head(None, None, tuple(live))
    return Head(
        norm if isinstance(norm, nn.LayerNorm) else None,
        linear.weight if isinstance(linear, nn.Linear) and isinstance(linear.weight, nn.Parameter) else None,
        (),
    )


def _does_nothing(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Identity) or (isinstance(layer, nn.Dropout) and layer.p == 0)


def _is_plain_norm(layer: nn.Module) -> bool:
    return isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1 and not is_parametrized(layer)


def _is_plain_linear(layer: nn.Module) -> bool:
    # Exactly nn.Linear: a subclass (a low-rank adapter, a quantised layer) may compute something else.
    return type(layer) is nn.Linear and getattr(layer, "bias", None) is None and not is_parametrized(layer)
