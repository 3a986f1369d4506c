"""diffusers' FluxTransformer2DModel and SD3Transformer2DModel as native networks over the same weights."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from diva_rs.native import diffusers_layers as layers
from diva_rs.native.inspect import class_path, expect, one

_PARTS = f"{layers.MODELS}transformers.transformer_flux."
_FLUX = f"{_PARTS}FluxTransformer2DModel"
_SD3 = f"{layers.MODELS}transformers.transformer_sd3.SD3Transformer2DModel"
_BLOCKS = (f"{_PARTS}FluxTransformerBlock", f"{_PARTS}FluxSingleTransformerBlock")
_NORMS = f"{layers.MODELS}normalization."
_EMBEDDINGS = f"{layers.MODELS}embeddings."
_ALLOWED = layers.COMMON | {
    *(_FLUX, _SD3, *_BLOCKS, f"{layers.MODELS}attention.JointTransformerBlock", layers.LAYER_NORM),
    *(f"{_PARTS}FluxAttention", f"{_PARTS}FluxPosEmbed", f"{_EMBEDDINGS}PatchEmbed"),
    *(f"{_NORMS}AdaLayerNorm{name}" for name in ("Zero", "ZeroSingle", "Continuous")),
    *(f"{_NORMS}SD35AdaLayerNormZeroX", f"{_NORMS}RMSNorm", f"{layers.TORCH}normalization.RMSNorm"),
    *(f"{_EMBEDDINGS}CombinedTimestep{name}TextProjEmbeddings" for name in ("", "Guidance")),
    *(f"{_EMBEDDINGS}{name}" for name in ("Timesteps", "TimestepEmbedding", "PixArtAlphaTextProjection")),
    *(f"{layers.MODELS}attention.FeedForward", f"{layers.MODELS}activations.GELU"),
    f"{layers.TORCH}activation.GELU",
}
_QK_NORMS = {None: None, "rms_norm": "rms_float32", "layer_norm": "layer"}


def flux_config(model: Any) -> dict[str, Any]:
    """The native network's configuration but `guidance` and `checkpoint`, read from the modules."""
    config = _checked(model).config
    plain = config.patch_size == 1 and config.in_channels % 4 == 0
    expect(plain, f"its {config.in_channels} channels are not those of packed 2x2 patches of latents")
    _check_channels(config)
    return {
        **_fields(model),
        "channels": config.in_channels // 4,
        "patch_size": 2,
        "qk_norm": ("rms", _head_eps(model)),
        "form": {
            "flux": {
                "num_single_layers": config.num_single_layers,
                "axes": config.axes_dims_rope,
                "theta": float(model.pos_embed.theta),
            }
        },
    }


def sd3_config(model: Any) -> dict[str, Any]:
    """The native network's configuration but `checkpoint`, read from the modules."""
    config = _checked(model).config
    width, text = model.inner_dim, config.caption_projection_dim
    expect(text == width, f"its text is {text} wide, its image {width}")
    expect(config.pos_embed_max_size is not None, "it has no stored positions to crop")
    expect(config.qk_norm in _QK_NORMS, f"its qk_norm is {config.qk_norm!r}")
    _check_channels(config)
    norm = _QK_NORMS[config.qk_norm]
    return {
        **_fields(model),
        "channels": config.in_channels,
        "patch_size": config.patch_size,
        "qk_norm": norm and (norm, _head_eps(model)),
        "form": {"sd3": {"grid": config.pos_embed_max_size, "dual_layers": config.dual_attention_layers}},
    }


def _fields(model: Any) -> dict[str, Any]:
    config, time = model.config, model.time_text_embed.time_proj
    plain = time.flip_sin_to_cos and time.downscale_freq_shift == 0 and time.scale == 1
    expect(plain, "time_proj is of an unknown form")
    gelus = [gelu.approximate for gelu in model.modules() if hasattr(gelu, "approximate")]
    expect(set(gelus) == {"tanh"}, f"its GELUs are approximated by {set(gelus)}")
    norms = [norm for _, norm in layers.layers_of(model, layers.LAYER_NORM) if not norm.elementwise_affine]
    return {
        "heads": config.num_attention_heads,
        "head_width": config.attention_head_dim,
        "hidden": 4 * model.inner_dim,
        "num_layers": config.num_layers,
        "tokens_width": config.joint_attention_dim,
        "pooled_width": config.pooled_projection_dim,
        "time_channels": time.num_channels,
        "norm_eps": one("eps of LayerNorm", [norm.eps for norm in norms]),
    }


def _check_channels(config: Any) -> None:
    out = config.in_channels if config.out_channels is None else config.out_channels
    expect(out == config.in_channels, f"it has {config.in_channels} channels in and {out} out")


def _head_eps(model: nn.Module) -> float:
    names = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")
    norms = [norm for name, norm in model.named_modules() if name.rpartition(".")[2] in names]
    return float(one("eps of the norms of queries and keys", [norm.eps for norm in norms]))


def _checked(model: Any) -> Any:
    """The model; NotNative unless each of its modules is as its class builds it of its configuration."""
    with torch.device("meta"):
        built = dict(type(model).from_config(model.config).named_modules())
    found = dict(model.named_modules())
    for name in dict.fromkeys((*built, *found)):
        where = name or "the module"
        expect(name in built and name in found, f"{where} is {'too many' if name in found else 'missing'}")
        expected = class_path(built[name])
        expect(
            class_path(found[name]) == expected, f"{where} is a {class_path(found[name])}, not a {expected}"
        )
        theirs = vars(found[name])
        for attribute, value in _state(built[name]):
            same = attribute in theirs and _form(theirs[attribute]) == value
            expect(same, f"{where}.{attribute} is not {value!r}")
    return model


def _state(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a module computes with beside its weights."""
    for name, value in vars(module).items():
        if name not in ("training", "gradient_checkpointing") and (name[0] != "_" or name == "_chunk_size"):
            yield name, _form(value)


def _form(value: Any) -> Any:
    """A plain value; of an object, its class, whose code must be its own, and its state."""
    if value is None or isinstance(value, (bool, int, float, str, tuple, list, torch.Size)):
        return value
    cls = type(value)  # of an attention processor
    expect(
        not callable(value) or cls.__call__.__module__ == cls.__module__, f"{class_path(value)} was replaced"
    )
    return class_path(value), vars(value) if hasattr(value, "__dict__") else None


def _is_small(key: str) -> bool:
    entry = key.startswith(("pos_embed.", "x_embedder.", "time_text_embed.", "norm_out.", "proj_out."))
    return entry or ".norm_" in key


MMDIT = layers.Denoiser(
    kind="mmdit",
    configs={_FLUX: flux_config, _SD3: sd3_config},
    allowed=_ALLOWED,
    small=_is_small,
    trains=True,
)
