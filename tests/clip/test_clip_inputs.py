"""Models and pixels that cannot be used: each a diva_rs exception that names what, where and what to do."""

import re
import warnings
from collections.abc import Callable

import open_clip
import pytest
import torch
import transformers
from torch import nn

from builders.changes import Twice
from builders.clips import IMAGE, clip_variants, pixels
from diva_rs.clip import adapt
from diva_rs.errors import ConfigError, ShapeError

pytestmark = pytest.mark.hostile

VARIANTS = clip_variants()
TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}


def open_clip_model(**vision: object) -> nn.Module:
    given = {"image_size": IMAGE, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16, **vision}
    return open_clip.CLIP(embed_dim=16, vision_cfg=given, text_cfg=TEXT)


def without_pooling() -> nn.Module:
    model = VARIANTS["timm-vit-token-head"]()
    model.visual.trunk.reset_classifier(0, global_pool="")
    return model


def unknown_visual() -> nn.Module:
    model = VARIANTS["open_clip-gelu"]()
    model.visual = nn.Flatten()
    return model


def headless_siglip() -> nn.Module:
    config = VARIANTS["transformers-siglip"]().config.vision_config
    config.vision_use_head = False
    return transformers.SiglipVisionModel(config)


def old_open_clip() -> nn.Module:
    model = VARIANTS["openai"]()
    model.visual.patch_dropout = nn.Identity()
    return model


class FullyShardedDataParallel(nn.Module):
    """Only the name counts: the real one needs several processes."""


def computed_class_token() -> nn.Module:
    model = VARIANTS["open_clip-gelu"]()
    model.visual._parameters["class_embedding"] = model.visual.class_embedding * 1
    return model


def of_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return open_clip_model()


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "resnet": (
        lambda: open_clip_model(layers=(1, 1, 1, 1), width=8, head_width=8),
        r"ModifiedResNet is a ResNet: it has no patch tokens.*Supported are",
    ),
    "convnext": (
        lambda: open_clip_model(timm_model_name="test_convnext", timm_pool="avg", timm_proj="linear"),
        r"trunk ConvNeXt has no `patch_embed`.*SigLIP, CLIP.*EVA-02",
    ),
    "no pooling": (without_pooling, r"does not pool .*timm_pool='map', 'token' or 'avg'"),
    "another class": (
        lambda: nn.Linear(2, 2),
        r"Linear is not a CLIP model of a known library. Supported are .*OpenAI.*CLIPModel",
    ),
    "another visual": (unknown_visual, r"CLIP \(its visual is a Flatten\) is not a CLIP model of a known"),
    "SigLIP without its head": (headless_siglip, "vision_use_head=False"),
    "an open_clip before 2.30": (old_open_clip, r"`patch_dropout` as in an open_clip before 2\.30"),
    "scripted": (lambda: torch.jit.script(nn.Linear(2, 2)), r"compiled by torch\.jit.*jit=False"),
    "sharded": (FullyShardedDataParallel, r"FullyShardedDataParallel.*pass it unwrapped"),
    "computed": (computed_class_token, r"visual\.class_embedding .* not a leaf tensor.*load_state_dict"),
    "inference mode": (of_inference_mode, r"visual\.class_embedding .* created under torch\.inference_mode"),
    "a name": (lambda: "ViT-L-14", "clip is a str, expected a loaded model"),
    "open_clip's triple": (lambda: (None, None, None), "clip is a tuple, .* return it first"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_be_adapted_says_why(name: str) -> None:
    make, words = REFUSED[name]
    model = make()
    with pytest.raises(ConfigError, match=words):
        adapt(model)


@pytest.mark.parametrize(
    "kind", ["CLIPTextModel", "CLIPTextModelWithProjection", "SiglipTextModel", "open_clip"]
)
def test_a_text_tower_has_no_vision_part(kind: str) -> None:
    if kind == "open_clip":
        model = VARIANTS["open_clip-custom-text"]().text
    else:
        family = "Siglip" if kind.startswith("Siglip") else "CLIP"
        model = getattr(transformers, kind)(VARIANTS[f"transformers-{family.lower()}"]().config.text_config)
    with pytest.raises(ConfigError, match=rf"{type(model).__name__} is a text tower and has no vision part"):
        adapt(model)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("open_clip-gelu", "clip.visual.requires_grad_(True)"),
        ("timm-siglip", "clip.visual.requires_grad_(True)"),
        ("openai", "clip.visual.requires_grad_(True)"),
        ("transformers-clip", "clip.vision_model.requires_grad_(True)"),
        ("transformers-clip-vision", "clip.requires_grad_(True)"),
    ],
)
def test_a_frozen_tower_names_the_call_that_unfreezes_it(name: str, call: str) -> None:
    clip = VARIANTS[name]().requires_grad_(False)
    with pytest.raises(ConfigError, match=f"every parameter .* is frozen.*{re.escape(call)}"):
        adapt(clip)
    eval(call, {"clip": clip})
    assert adapt(clip).named_parameters()


def test_open_clips_own_lock_counts_as_frozen() -> None:
    model = VARIANTS["open_clip-gelu"]()
    model.lock_image_tower()
    with pytest.raises(ConfigError, match="every parameter of the vision tower"):
        adapt(model)


@pytest.mark.parametrize("name", ["open_clip-gelu", "openai"])
def test_a_computed_projection_is_named(name: str) -> None:
    model = VARIANTS[name]()
    nn.utils.parametrize.register_parametrization(model.visual, "proj", Twice())
    with pytest.raises(ConfigError, match=r"visual\.proj is not a leaf parameter.*remove_parametrizations"):
        adapt(model)


def dropping(name: str) -> nn.Module:
    if name == "open_clip":
        return open_clip_model(patch_dropout=0.5)
    vision = {"image_size": 32, "timm_pool": "token", "timm_proj": None, "patch_dropout": 0.5}
    return open_clip.CLIP(embed_dim=16, vision_cfg={**vision, "timm_model_name": name}, text_cfg=TEXT)


@pytest.mark.parametrize("name", ["open_clip", "diva_test_vit", "diva_test_eva"])
def test_patch_dropout_is_refused_in_train_mode_and_harmless_in_eval_mode(name: str) -> None:
    model = dropping(name).train()
    tower = adapt(model)
    with pytest.raises(ConfigError, match=r"visual\..*drops patches in train mode.*clip\.visual\.eval\(\)"):
        tower.tokens(torch.zeros(1, 3, 32, 32))
    model.visual.eval()
    tokens = tower.tokens(torch.zeros(1, 3, 32, 32))
    assert tokens.shape[1] == 17 and tokens.requires_grad
    assert tower.frozen_copy().tokens(torch.zeros(1, 3, 32, 32)).shape[1] == 17


def test_other_chance_in_train_mode_is_pointed_out_once() -> None:
    config = VARIANTS["transformers-clip"]().config
    config.vision_config.attention_dropout = 0.1
    model = transformers.CLIPModel(config).train()
    tower = adapt(model)
    with pytest.warns(UserWarning, match=r"2 layers .*layers\.0\.self_attn.*clip\.vision_model\.eval\(\)"):
        tower.tokens(pixels(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tower.tokens(pixels(model))
        adapt(model.eval()).tokens(pixels(model))


@pytest.mark.parametrize("name", ["open_clip-gelu", "timm-siglip", "transformers-clip", "openai"])
@pytest.mark.parametrize(
    "shape",
    [(3, 32, 32), (1, 1, 3, 32, 32), (1, 4, 32, 32), (1, 3, 32, 40), (1, 3, 64, 64), (0, 3, 32, 32)],
)
def test_an_error_about_pixels_names_the_right_shape(name: str, shape: tuple[int, ...]) -> None:
    said = rf"pixels is {re.escape(str(shape))}, but this .* takes \(B, 3, 32, 32\) with B > 0"
    with pytest.raises(ShapeError, match=said):
        adapt(VARIANTS[name]()).tokens(torch.zeros(shape))


def test_bytes_are_not_taken_for_normalised_pixels() -> None:
    with pytest.raises(ShapeError, match=r"pixels is torch\.uint8, expected floating point"):
        adapt(VARIANTS["openai"]()).tokens(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize("shape", [(2, 32), (2, 17, 24)])
def test_tokens_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected \(batch, 1 \+ patches, 32\)"):
        adapt(VARIANTS["open_clip-gelu"]()).embed(torch.zeros(shape))
