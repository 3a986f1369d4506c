"""The native vision tower over the weights of a Tower: same tokens, same gradients, no Python in between."""

from typing import Any

from torch import Tensor

import diva_rs._native as _native
from diva_rs.clip.tower import Tower
from diva_rs.errors import WeightsError
from diva_rs.native import layouts
from diva_rs.native.inspect import NotNative, check_modules, check_weights, expect


def native_tower(tower: Tower, compute: str | None = None, checkpoint: bool = False) -> _native.Network:
    """A native network that gives exactly what ``tower.tokens`` gives, on the very same parameters.

    An optimizer step is seen at once, and backward fills their ``.grad``. The network has to be built again
    after parameters were replaced by others, or the model was cast to another dtype. ``compute`` is the
    precision of the matrix products ("fp32", "bf16", "fp64", by default that of the weights): with float32
    weights and "bf16", tokens, norms and gradients are float32. With ``checkpoint`` a step runs each block
    twice instead of keeping its activations.

    >>> clip, teacher, images = diva_rs.microworld.example()
    >>> from diva_rs.clip import adapt
    >>> tower = adapt(clip)
    >>> tokens = native_tower(tower).tokens(images)
    >>> torch.allclose(tokens, tower.tokens(images), atol=1e-5)
    True
    >>> tokens.sum().backward()
    >>> clip.visual.conv1.weight.grad.shape
    torch.Size([96, 3, 12, 12])
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
    expect(tower.family in layouts.ALLOWED, f"no native layout is known for the family {tower.family!r}")
    check_modules(tower.module, layouts.ALLOWED[tower.family])
    dtype = check_weights(tower.module.named_parameters())
    config = layouts.read(tower, dtype)
    norm = () if tower.norm is None else tower.norm.parameters()
    later = {id(weight) for weight in (*norm, tower.proj)}
    weights: dict[str, Tensor] = {
        tower.prefix + key: weight
        for key, weight in tower.module.named_parameters(remove_duplicate=False)
        if id(weight) not in later and key not in tower.unused
    }
    return config, weights


def why_not(tower: Tower) -> str | None:
    """Why the native network would not compute `tower` exactly, or None when it would; it costs little.

    >>> clip, teacher, images = diva_rs.microworld.example()
    >>> from diva_rs.clip import adapt
    >>> why_not(adapt(clip)) is None
    True
    """
    try:
        describe(tower)
    except NotNative as refusal:
        return refusal.reason
    return None
