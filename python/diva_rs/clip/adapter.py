"""From a CLIP model of any supported library to its Tower, without patching or copying anything."""

from typing import Any

import torch
from torch import nn

from diva_rs._base.arguments import takes
from diva_rs._base.settings import flag
from diva_rs.clip import open_clip, openai, timm_siglip, transformers_clip
from diva_rs.clip.tower import Tower
from diva_rs.clip.wrappers import unwrap
from diva_rs.errors import ConfigError

SUPPORTED = (
    "open_clip models with a VisionTransformer or a timm ViT (CLIP, CustomTextCLIP, CoCa), transformers "
    "CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection (MetaClip2 as well), SiglipModel and "
    "SiglipVisionModel, and ViT models of OpenAI's clip"
)


@takes(training=flag())
def adapt(clip: Any, training: bool = True) -> Tower:
    """The vision tower of a CLIP model, for training it in place.

    Wrappers of DistributedDataParallel, DataParallel and torch.compile are looked through. The vision part
    alone (for example ``clip.visual``) is accepted as well. Nothing of the model is replaced, hooked or
    copied.

    Args:
        clip: a model of open_clip, transformers or OpenAI's `clip` package, already on its device. Pixels
            are to be normalised by the tower's `mean` and `std`.
        training: False where the tower is only read: then its parameters may all be frozen.

    Raises:
        ConfigError: the model has no patch tokens (ResNet), no vision part or an unknown class; with
            ``training``, only frozen vision parameters, or parameters that cannot hold a gradient.

    >>> import open_clip
    >>> clip = open_clip.CLIP(
    ...     embed_dim=16,
    ...     vision_cfg=dict(image_size=32, patch_size=8, width=32, layers=1, head_width=16, pool_type="avg"),
    ...     text_cfg=dict(context_length=8, vocab_size=64, width=16, heads=2, layers=1),
    ...     quick_gelu=True,
    ... )
    >>> tower = adapt(clip)
    >>> tower.family, tower.patches, tower.width, tower.embed_dim, tower.image_size
    ('open_clip', 16, 32, 16, (32, 32))
    >>> tower.norm is None  # applied before the average, so already inside the tokens
    True
    """
    if isinstance(clip, Tower):
        return clip
    if isinstance(clip, (tuple, list)):
        raise ConfigError(
            f"clip is a {type(clip).__name__} of {len(clip)}, expected the model alone: "
            "open_clip.create_model_and_transforms and clip.load return the model first"
        )
    if not isinstance(clip, nn.Module):
        raise ConfigError(f"clip is a {type(clip).__name__}, expected a loaded model: {SUPPORTED}")
    model = unwrap(clip)
    tower = _tower(model)
    if not training:
        return tower
    _check_parameters(tower)
    if not tower.named_parameters():
        raise ConfigError(
            f"every parameter of the vision tower ({tower.name}) is frozen, so nothing could be trained: "
            f"call clip.{tower.where + '.' if tower.where else ''}requires_grad_(True)"
        )
    return tower


def _tower(model: nn.Module) -> Tower:
    name = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise ConfigError(
            f"{name} is compiled by torch.jit, its layers cannot be called: load it with jit=False"
        )
    if name == "FullyShardedDataParallel":
        raise ConfigError(
            "clip is wrapped in FullyShardedDataParallel, whose parameters are shards: pass it unwrapped"
        )
    if transformers_clip.family_of(model) is not None:
        return transformers_clip.build(model)
    where = "visual" if isinstance(getattr(model, "visual", None), nn.Module) else ""
    visual = unwrap(model.visual) if where else model  # type: ignore[arg-type]
    if hasattr(visual, "layer1") and hasattr(visual, "attnpool"):
        raise ConfigError(
            f"{type(visual).__name__} is a ResNet: it has no patch tokens to build a condition from. "
            f"Supported are {SUPPORTED}"
        )
    if timm_siglip.matches(visual):
        tower = timm_siglip.build(visual, where)
        timm_siglip.check_pixels(tower)
        return tower
    if open_clip.matches(visual):
        return open_clip.build(visual, where)
    if openai.matches(visual):
        return openai.build(visual, where)
    if not where and not hasattr(model, "vision_model") and _reads_text(model):
        raise ConfigError(f"{name} is a text tower and has no vision part. Supported are {SUPPORTED}")
    inside = f" (its visual is a {type(visual).__name__})" if where else ""
    raise ConfigError(f"{name}{inside} is not a CLIP model known here. Supported are {SUPPORTED}")


def _reads_text(model: nn.Module) -> bool:
    keys = (key for key, _ in model.named_parameters())
    return "Text" in type(model).__name__ or any("token_embedding" in key for key in keys)


def _check_parameters(tower: Tower) -> None:
    for key, parameter in tower.module.named_parameters():
        if not parameter.is_leaf:
            raise ConfigError(
                f"{tower.prefix}{key} is not a leaf tensor, so no gradient could be stored in it: it was "
                "computed from other tensors. Assign .data, or load the weights with load_state_dict"
            )
        if parameter.is_inference():
            raise ConfigError(
                f"{tower.prefix}{key} was created under torch.inference_mode() and cannot be trained: load "
                "the model outside it"
            )
