"""Models and pixels that cannot be used: each a diva_rs exception that names what, where and what to do."""

import re
import warnings

import open_clip
import pytest
import torch
import transformers
from torch import nn

from builders.clips import IMAGE, clip_variants, pixels
from diva_rs.clip import adapt
from diva_rs.errors import ConfigError, ShapeError

pytestmark = pytest.mark.hostile

VARIANTS = clip_variants()
TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}


def resnet() -> nn.Module:
    vision = {"image_size": IMAGE, "layers": (1, 1, 1, 1), "width": 8, "head_width": 8}
    return open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=TEXT)


def test_a_resnet_has_no_patch_tokens() -> None:
    with pytest.raises(
        ConfigError, match=r"ModifiedResNet is a ResNet: it has no patch tokens.*Supported are"
    ):
        adapt(resnet())


def test_a_convolutional_timm_trunk_has_no_patch_tokens() -> None:
    vision = {"image_size": 64, "timm_model_name": "test_convnext", "timm_pool": "avg", "timm_proj": "linear"}
    model = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=TEXT)
    with pytest.raises(ConfigError, match=r"trunk ConvNeXt has no `patch_embed`.*SigLIP, CLIP.*EVA-02"):
        adapt(model)


def test_a_timm_trunk_without_pooling_has_no_embedding() -> None:
    model = VARIANTS["timm-vit-token-head"]()
    model.visual.trunk.reset_classifier(0, global_pool="")
    with pytest.raises(ConfigError, match=r"does not pool .*timm_pool='map', 'token' or 'avg'"):
        adapt(model)


@pytest.mark.parametrize("what", [nn.Linear(2, 2), nn.Sequential(nn.Conv2d(3, 4, 3))])
def test_an_unknown_class_is_named_beside_the_supported_ones(what: nn.Module) -> None:
    expected = (
        rf"{type(what).__name__} is not a CLIP model of a known library. Supported are .*OpenAI.*CLIPModel"
    )
    with pytest.raises(ConfigError, match=expected):
        adapt(what)


def test_an_unknown_visual_is_named_as_well() -> None:
    model = VARIANTS["open_clip-gelu"]()
    model.visual = nn.Flatten()
    with pytest.raises(
        ConfigError, match=r"CLIP \(its visual is a Flatten\) is not a CLIP model of a known library"
    ):
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


@pytest.mark.parametrize("what", ["ViT-L-14", (None, None, None)])
def test_what_is_no_model_is_an_error(what: object) -> None:
    said = rf"clip is a {type(what).__name__}, expected a loaded model: .* return it first"
    with pytest.raises(ConfigError, match=said):
        adapt(what)


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


def test_a_non_leaf_parameter_is_named() -> None:
    model = VARIANTS["open_clip-gelu"]()
    model.visual._parameters["class_embedding"] = model.visual.class_embedding * 1
    with pytest.raises(ConfigError, match=r"visual\.class_embedding is not a leaf tensor.*load_state_dict"):
        adapt(model)


@pytest.mark.parametrize("name", ["open_clip-gelu", "openai"])
def test_a_computed_projection_is_named(name: str) -> None:
    class Twice(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    model = VARIANTS[name]()
    nn.utils.parametrize.register_parametrization(model.visual, "proj", Twice())
    with pytest.raises(ConfigError, match=r"visual\.proj is not a leaf parameter.*remove_parametrizations"):
        adapt(model)


def test_weights_made_in_inference_mode_are_named() -> None:
    with torch.inference_mode():
        model = open_clip.CLIP(
            embed_dim=16,
            vision_cfg={"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
            text_cfg=TEXT,
        )
    with pytest.raises(ConfigError, match=r"visual\.class_embedding was created under torch\.inference_mode"):
        adapt(model)


def test_a_scripted_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"compiled by torch\.jit.*jit=False"):
        adapt(torch.jit.script(nn.Linear(2, 2)))


def test_a_sharded_model_is_refused() -> None:
    class FullyShardedDataParallel(nn.Module):
        """Only the name counts: the real one needs several processes."""

    with pytest.raises(ConfigError, match=r"FullyShardedDataParallel.*pass it unwrapped"):
        adapt(FullyShardedDataParallel())


def test_attentional_pooling_into_another_width_is_refused_with_both_widths() -> None:
    vision = {
        "image_size": 32,
        "patch_size": 8,
        "width": 32,
        "layers": 1,
        "head_width": 16,
        "attentional_pool": True,
        "attn_pooler_heads": 4,
        "attn_pooler_queries": 3,
    }
    model = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=TEXT)
    with pytest.raises(ConfigError, match="patches of width 32 to queries of width 16"):
        adapt(model)


def test_siglip_without_its_pooling_head_is_refused() -> None:
    config = VARIANTS["transformers-siglip"]().config.vision_config
    config.vision_use_head = False
    with pytest.raises(ConfigError, match="vision_use_head=False"):
        adapt(transformers.SiglipVisionModel(config))


def test_an_old_open_clip_is_not_taken_for_openais_layout() -> None:
    model = VARIANTS["openai"]()
    model.visual.patch_dropout = nn.Identity()
    with pytest.raises(ConfigError, match=r"`patch_dropout` as in an open_clip before 2\.30"):
        adapt(model)


def dropping(name: str) -> nn.Module:
    if name == "open_clip":
        vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}
        return open_clip.CLIP(embed_dim=16, vision_cfg={**vision, "patch_dropout": 0.5}, text_cfg=TEXT)
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
def test_pixels_of_a_wrong_shape_are_told_the_right_one(name: str, shape: tuple[int, ...]) -> None:
    said = rf"pixels is {re.escape(str(shape))}, but this .* takes \(B, 3, 32, 32\) with B > 0"
    with pytest.raises(ShapeError, match=said):
        adapt(VARIANTS[name]()).tokens(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64], ids=str)
def test_pixels_of_a_wrong_dtype_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ShapeError, match=rf"pixels is {dtype}, expected floating point"):
        adapt(VARIANTS["openai"]()).tokens(torch.zeros(1, 3, 32, 32, dtype=dtype))


def test_tokens_of_a_wrong_shape_are_refused() -> None:
    tower = adapt(VARIANTS["open_clip-gelu"]())
    with pytest.raises(ShapeError, match=r"tokens is \(2, 32\), expected \(batch, 1 \+ patches, 32\)"):
        tower.embed(torch.zeros(2, 32))
    with pytest.raises(ShapeError, match=r"tokens is \(2, 17, 24\), expected"):
        tower.embed(torch.zeros(2, 17, 24))
