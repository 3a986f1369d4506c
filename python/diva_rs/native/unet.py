"""diffusers' UNet2DConditionModel as a native network over the same weights."""

import warnings
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

import diva_rs._native as _native
from diva_rs.errors import ConfigError, WeightsError
from diva_rs.native.diffusers_layers import unrounded
from diva_rs.native.inspect import NotNative, check_modules, check_weights, expect, kind
from diva_rs.native.unet_config import ALLOWED, UNET, unet_config

if TYPE_CHECKING:
    from diva_rs.diffusion.sdxl import AddedCondition


def native_unet(
    module: nn.Module,
    text: Tensor | None = None,
    added: "AddedCondition | None" = None,
    checkpoint: bool = False,
    exact: nn.Module | None = None,
) -> "_native.UNet2DCondition":
    """The native network that computes exactly what `module` does, on the module's own weights.

    The weights share their storage and are never asked for a gradient, whatever the module's
    ``requires_grad`` says. Predictions have `module`'s dtype, the device of the noisy latents, and no learned
    variance. With bf16 weights the matrix products run in bf16 and the sums between them in float32, which is
    then the predictions' dtype.

    Args:
        module: a diffusers ``UNet2DConditionModel``.
        text: what the cross-attention reads (1, L, D), for models whose condition enters as a class embedding
            (Stable unCLIP).
        added: SDXL's pooled text and sizes, for models that take them.
        checkpoint: whether a step should run each unit twice instead of keeping its activations.
        exact: what `module` was before it was rounded to bf16. Its norms, embeddings of the timestep, first
            and last convolution are taken unrounded: they cost next to nothing and a quarter of the error.

    Raises:
        NotNative: anything about the module that the native network does not compute.
        ShapeError: ``text`` or ``added`` does not fit the module.

    >>> native = native_unet(unet)
    >>> native.condition_width
    24
    >>> noisy, timesteps = torch.randn(2, 3, 16, 16), torch.tensor([10, 500])
    >>> condition = torch.randn(2, 5, 24, requires_grad=True)
    >>> theirs = unet(noisy, timesteps, condition).sample
    >>> torch.allclose(native.predict(noisy, timesteps, condition), theirs, atol=1e-5)
    True
    """
    unet: Any = module
    expect(kind(unet) == UNET, f"it is a {kind(unet)}")
    with warnings.catch_warnings():
        # diffusers warns of every look for an attribute that it finds in the configuration.
        warnings.simplefilter("ignore", FutureWarning)
        check_modules(unet, ALLOWED)
    weights = dict(unet.named_parameters(remove_duplicate=False)) | dict(unet.named_buffers())
    check_weights(weights.items())
    weights |= unrounded(exact, _is_small)
    config = unet_config(unet) | {"text_time": None, "checkpoint": checkpoint}
    fixed: dict[str, Tensor] = {}
    if unet.config.class_embed_type is not None:
        expect(text is not None, "its cross-attention reads a text that was not given")
        fixed["encoder_hidden_states"] = text  # type: ignore[assignment]
    if unet.config.addition_embed_type is not None:
        if added is None:
            raise NotNative("it takes an added condition that was not given")
        fixed["text_embeds"] = _pooled(unet, added)
        if added.time_ids is not None:
            fixed["time_ids"] = added.time_ids
        factor = added.factor() if added.time_ids is None else 1
        config["text_time"] = (unet.add_time_proj.num_channels, factor)
    try:
        return _native.UNet2DCondition(config, weights, fixed)
    except (ConfigError, WeightsError) as err:
        raise NotNative(str(err)) from err


def _is_small(key: str) -> bool:
    """Whether a weight belongs to what a bf16 network computes in float32."""
    entry = key.startswith(("conv_in.", "conv_out.", "time_embedding.", "class_embedding.", "add_embedding."))
    return entry or any("norm" in part or part == "time_emb_proj" for part in key.split("."))


def _pooled(unet: Any, added: "AddedCondition") -> Tensor:
    if added.text is not None:
        return added.text
    return unet.conv_in.weight.new_zeros(1, added.text_width)  # type: ignore[no-any-return]
