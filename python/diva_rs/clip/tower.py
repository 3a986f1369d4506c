"""The student as the rest of diva_rs sees it: pixels in, tokens out, and which parameters train."""

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from diva_rs.clip.wrappers import own_names
from diva_rs.errors import ConfigError, ShapeError

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)  # open_clip/constants.py: OPENAI_DATASET_MEAN
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)  # SigLIP: pixels in [-1, 1]

Triple = tuple[float, float, float]


@dataclass(eq=False, repr=False, kw_only=True)
class Tower:
    """The vision part of a CLIP model, made by :func:`diva_rs.clip.adapt`.

    A tower owns nothing: its modules and parameters are the caller's own. Create it after the model is on
    its device. ``W`` is `width`, ``P`` is `patches`, ``D`` is `embed_dim`. If the library applies its final
    LayerNorm and projection to each token alone, they are left to the caller as `norm` and `proj`, so that
    only the chosen tokens pay for them; otherwise :meth:`tokens` applies them and these fields are None.

    >>> clip, teacher, images = diva_rs.microworld.example()
    >>> tower = diva_rs.clip.adapt(clip)
    >>> tower
    Tower(open_clip, VisionTransformer: 16 patches of width 96 from 48x48 pixels, embedding 64)
    >>> tokens = tower.tokens(images)
    >>> tokens.shape
    torch.Size([8, 17, 96])
    >>> torch.allclose(tower.embed(tokens), clip.encode_image(images), atol=1e-6)
    True
    """

    name: str  # the class of the caller's vision module
    family: str  # "open_clip", "timm", "transformers-clip", "transformers-siglip", "openai", or another's
    module: nn.Module  # the vision part; its parameters train
    norm: nn.LayerNorm | None = None  # final LayerNorm still to be applied to the tokens
    proj: nn.Parameter | None = None  # projection still to be applied after `norm`
    proj_transposed: bool = False  # False: (W, D), tokens @ proj; True: (D, W), the weight of an nn.Linear
    patches: int
    width: int
    embed_dim: int
    image_size: tuple[int, int]  # (H, W) in pixels
    mean: Triple = OPENAI_MEAN  # of pixels in [0, 1], per channel
    std: Triple = OPENAI_STD
    where: str = ""  # the attribute of the caller's model that holds the vision part, for messages
    prefix: str = ""  # what the caller's keys have in front of the module's
    opened: str = ""  # a part of `module` that the model around it reads; "": it only calls the module
    unused: frozenset[str] = frozenset()  # keys of the module that no token and no embedding depends on
    # Ends of the keys of weights that hold several matrices, one above the other -> a letter for each.
    fused: Mapping[str, str] = field(default_factory=lambda: {"in_proj_weight": "qkv"})
    stem: nn.Module  # the first layer: its dtype and device are the pixels'
    tap: Callable[[Tensor], Tensor]  # checked pixels -> tokens, through the caller's own sub-modules
    rebuild: Callable[[nn.Module], "Tower"]  # the same tower over another copy of `module`
    _stochastic: list[tuple[str, nn.Module]] = field(init=False)
    _patch_dropout: list[tuple[str, nn.Module]] = field(init=False)
    _warned: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._stochastic = stochastic_layers(self.module)
        self._patch_dropout = dropped_patches(self.module)
        if self.proj is not None and not (isinstance(self.proj, nn.Parameter) and self.proj.is_leaf):
            raise ConfigError(
                f"{self.prefix}proj is not a leaf parameter but computed from other tensors: load the "
                "weights again, or call torch.nn.utils.parametrize.remove_parametrizations first"
            )

    def __repr__(self) -> str:
        height, width = self.image_size
        return (
            f"Tower({self.family}, {self.name}: {self.patches} patches of width {self.width} from "
            f"{height}x{width} pixels, embedding {self.embed_dim})"
        )

    @property
    def call(self) -> str:
        """How the caller's code addresses the vision part, for messages: "clip.visual." or "clip."."""
        return f"clip.{self.where + '.' if self.where else ''}"

    def tokens(self, pixels: Tensor) -> Tensor:
        """The tokens (B, 1 + P, W) of pixels (B, 3, H, W), with their autograd graph.

        Pixels are normalised by `mean` and `std`, on the model's device, and cast to the dtype of its first
        layer. Token 0 is the one that the library's image embedding is made of (the class token, or the
        average or attention-pooled one), tokens 1 to P are the patches in row order.
        """
        height, width = self.image_size
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, height, width) or pixels.shape[0] == 0:
            raise ShapeError(
                f"pixels is {tuple(pixels.shape)}, but this {self.family} tower takes (B, 3, {height}, "
                f"{width}) with B > 0: resize the images, or load the model at their size"
            )
        if not pixels.is_floating_point():
            raise ShapeError(f"pixels is {pixels.dtype}, expected floating point, normalised by mean and std")
        self._check_mode()
        return self.tap(pixels.to(next(self.stem.parameters()).dtype))

    def called(self) -> set[nn.Module]:
        """The modules whose code `tokens` runs: of another one at most the weights are read."""
        found: set[nn.Module] = set()
        hooks = [
            module.register_forward_pre_hook(lambda module, _: found.add(module))
            for module in self.module.modules()
        ]
        pixel = next(self.stem.parameters())
        try:
            with torch.no_grad():
                self.tap(pixel.new_zeros(1, 3, *self.image_size))
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def project(self, tokens: Tensor) -> Tensor:
        """The rest of the library's head on each row, `norm`, then `proj`: (..., W) -> (..., D)."""
        rows: Tensor = tokens if self.norm is None else self.norm(tokens)
        if self.proj is None:
            return rows
        rows = rows.to(self.proj.dtype)
        return nn.functional.linear(rows, self.proj) if self.proj_transposed else rows @ self.proj

    def embed(self, tokens: Tensor) -> Tensor:
        """The image embedding, (B, 1 + P, W) -> (B, D): the library's own before it is L2-normalised."""
        if tokens.ndim != 3 or tokens.shape[2] != self.width:
            raise ShapeError(f"tokens is {tuple(tokens.shape)}, expected (batch, 1 + patches, {self.width})")
        return self.project(tokens[:, 0])

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by the checkpoint's own keys relative to the model given to `adapt`.

        Left out: what is frozen (``requires_grad=False``), what neither tokens nor embedding depend on,
        the text tower and the logit scale. So a frozen `norm` or `proj` is left out too.

        >>> clip, teacher, images = diva_rs.microworld.example()
        >>> sorted(diva_rs.clip.adapt(clip).named_parameters())[:3]
        ['visual.class_embedding', 'visual.conv1.weight', 'visual.ln_post.bias']
        """
        learning = {
            key: parameter
            for key, parameter in self.module.named_parameters()
            if parameter.requires_grad and key not in self.unused
        }
        # A block compiled on its own adds a part to its keys, which no checkpoint has.
        names = own_names(self.module, learning)
        return {self.prefix + names[key]: parameter for key, parameter in learning.items()}

    def frozen_copy(self) -> "Tower":
        """A copy of the vision part as it is now: own weights, eval mode, no gradients, no text tower.

        >>> clip, teacher, images = diva_rs.microworld.example()
        >>> diva_rs.clip.adapt(clip).frozen_copy().named_parameters()
        {}
        """
        return self.rebuild(copy.deepcopy(self.module).eval().requires_grad_(False))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Tower":
        # Field by field, `tap` would go on reading the caller's module.
        return self.rebuild(copy.deepcopy(self.module, memo))

    def _check_mode(self) -> None:
        for key, layer in self._patch_dropout:
            if layer.training:
                raise ConfigError(
                    f"{self.prefix}{key} drops patches in train mode, so token i would not be patch i: call "
                    f"{self.call}eval() (gradients still flow), or build the model with patch_dropout=0"
                )
        active = [self.prefix + key for key, layer in self._stochastic if layer.training]
        if active and not self._warned:
            self._warned = True
            warnings.warn(
                f"{len(active)} layers of the vision tower ({active[0]}, ...) are in train mode: their "
                "output depends on unseeded random numbers or on the rest of the batch, and the run cannot "
                f"be replayed exactly. Call {self.call}eval() to avoid this; gradients still flow.",
                UserWarning,
                stacklevel=3,
            )


def dropped_patches(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Layers that remove tokens in train mode (open_clip's and timm's PatchDropout), by name."""
    return [
        (name, layer)
        for name, layer in module.named_modules()
        if type(layer).__name__.startswith("PatchDropout") and _rate(layer, "prob") > 0
    ]


def stochastic_layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Layers whose train-mode output depends on random numbers or on the rest of the batch, by name."""
    return [
        (name, layer)
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm)
        or (isinstance(layer, _DropoutNd) and layer.p > 0)
        # `dropout`: nn.MultiheadAttention and transformers' attention; `drop_prob`: timm's DropPath.
        or max(_rate(layer, "dropout"), _rate(layer, "drop_prob")) > 0
    ]


def _rate(layer: nn.Module, attribute: str) -> float:
    value = getattr(layer, attribute, None)
    return float(value) if isinstance(value, (int, float)) else 0.0


def three(values: object, fallback: Triple) -> Triple:
    """Three channel values from what a library stores (tuple, list or nothing)."""
    if isinstance(values, (tuple, list)) and len(values) == 3:
        return (float(values[0]), float(values[1]), float(values[2]))
    return fallback


def two(value: Any) -> tuple[int, int]:
    """(H, W) from what a library stores: an integer for squares, or a pair."""
    height, width = value if isinstance(value, (tuple, list)) else (value, value)
    return (int(height), int(width))
