"""The native vision tower over the weights of a Tower: same tokens, same gradients, no Python in between."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

import diva_rs._native as _native
from diva_rs.clip.tower import Tower
from diva_rs.errors import WeightsError
from diva_rs.native import layouts
from diva_rs.native.inspect import NotNative, check_modules, check_weights


def native_tower(tower: Tower, compute: str | None = None, checkpoint: bool = False) -> _native.Network:
    """A native network that gives exactly what ``tower.tokens`` gives, on the very same parameters.

    The parameters are shared: an optimizer step is seen at once, and backward fills their ``.grad``. It has
    to be built again after parameters were replaced by others, or the model cast to another dtype.

    Args:
        tower: of :func:`diva_rs.clip.adapt`.
        compute: precision of the matrix products: "fp32", "bf16" or "fp64"; None: as the weights. With
            float32 weights and "bf16", tokens, norms and gradients are float32 all the same.
        checkpoint: whether a step should run each block twice instead of keeping its activations.

    >>> from diva_rs.clip import adapt
    >>> tower = adapt(clip)
    >>> images = torch.rand(2, 3, 32, 32)
    >>> tokens = native_tower(tower).tokens(images)
    >>> torch.allclose(tokens, tower.tokens(images), atol=1e-5)
    True
    >>> tokens.sum().backward()
    >>> clip.visual.conv1.weight.grad.shape
    torch.Size([32, 3, 8, 8])
    """
    config, weights = describe(tower)
    config |= {"compute": compute, "checkpoint": checkpoint}
    try:
        return _native.Network("vision_transformer", config, weights)
    except WeightsError as err:
        # A part that holds weights and was not read: the module computes more than the native tower.
        raise NotNative(str(err)) from err


def describe(tower: Tower) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration (but for `compute` and `checkpoint`) and the weights of a native tower.

    Weights are those that the tokens depend on, by the checkpoint's own keys: the final norm and the
    projection that are left to the caller are not among them.
    """
    if tower.family not in layouts.ALLOWED:
        raise NotNative(f"nothing is known of the family {tower.family!r}")
    check_modules(tower.module, layouts.ALLOWED[tower.family])
    dtype = check_weights(tower.module.named_parameters())
    config = layouts.read(tower, dtype)
    later: Mapping[int, Tensor] = {
        id(weight): weight
        for weight in (*(tower.norm.parameters() if tower.norm is not None else ()), tower.proj)
        if weight is not None
    }
    weights: dict[str, Tensor] = {
        tower.prefix + key: weight
        for key, weight in tower.module.named_parameters(remove_duplicate=False)
        if id(weight) not in later and key not in tower.unused
    }
    return config, weights


def why_not(tower: Tower) -> str | None:
    """Why the native network would not compute `tower` exactly, or None when it would.

    It is cheap: a hook or a switch to train mode can come before any epoch.

    >>> from diva_rs.clip import adapt
    >>> why_not(adapt(clip)) is None
    True
    """
    try:
        describe(tower)
    except NotNative as refusal:
        return refusal.reason
    return None
