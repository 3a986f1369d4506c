"""What `adapt` reads off a model besides its numbers: wrappers, keys, sizes, pixel statistics."""

import json
import warnings
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import transformers
from torch import nn

from builders.clips import clip_variants, pixels
from diva_rs.clip import Tower, adapt, check_quick_gelu
from diva_rs.clip.export import to_transformers

VARIANTS = clip_variants()


@pytest.mark.parametrize(
    "name", ["open_clip-gelu", "open_clip-avg-norm-after", "timm-siglip-linear", "openai"]
)
def test_the_vision_part_alone_is_a_tower_with_its_own_keys(name: str) -> None:
    model = VARIANTS[name]()
    images = pixels(model)
    whole, part = adapt(model), adapt(model.visual)
    assert torch.equal(whole.tokens(images), part.tokens(images))
    assert [f"visual.{key}" for key in part.named_parameters()] == list(whole.named_parameters())


def test_wrapped_models_are_looked_through() -> None:
    model = VARIANTS["open_clip-gelu"]()
    keys = list(adapt(model).named_parameters())
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model)
        for wrapped in (parallel, torch.compile(model), torch.compile(parallel), nn.DataParallel(model)):
            tower = adapt(wrapped)
            assert tower.module is model.visual
            assert list(tower.named_parameters()) == keys
    finally:
        torch.distributed.destroy_process_group()


def test_parts_compiled_on_their_own_keep_the_checkpoints_keys() -> None:
    model = VARIANTS["open_clip-gelu"]()
    keys = list(adapt(model).named_parameters())
    blocks = model.visual.transformer.resblocks
    blocks[1] = torch.compile(blocks[1], backend="eager")
    model.visual = torch.compile(model.visual)
    tower = adapt(model)
    assert tower.module is model.visual._orig_mod
    assert list(tower.named_parameters()) == keys
    assert tower.tokens(pixels(model)).shape == (2, 17, 32)


def test_pixels_are_cast_to_the_models_dtype() -> None:
    model = VARIANTS["transformers-clip"](torch.bfloat16)
    assert adapt(model).tokens(pixels(model)).dtype == torch.bfloat16


def test_a_frozen_part_of_the_tower_is_left_out() -> None:
    model = VARIANTS["open_clip-gelu"]()
    model.lock_image_tower(unlocked_groups=2)
    learning = adapt(model).named_parameters()
    assert "visual.proj" in learning and "visual.transformer.resblocks.1.ln_1.weight" in learning
    assert not any(key.startswith(("visual.conv1", "visual.transformer.resblocks.0")) for key in learning)


# Published configurations, built without memory: patches, width, embedding, side.
PUBLISHED = {
    "ViT-L-14": (256, 1024, 768, 224),
    "ViT-H-14-378-quickgelu": (729, 1280, 1024, 378),
    "ViT-L-14-CLIPA": (256, 1024, 768, 224),
    "ViT-SO400M-14-SigLIP-384": (729, 1152, 1152, 384),
    "EVA02-B-16": (196, 512, 512, 224),
    "coca_ViT-B-32": (49, 512, 512, 224),
    "coca_ViT-L-14": (256, 768, 768, 224),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_have_the_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model = open_clip.create_model(name, device="meta", force_preprocess_cfg={"mean": (0.1, 0.2, 0.3)})
    tower = adapt(model)
    patches, width, embedding, side = PUBLISHED[name]
    assert (tower.patches, tower.width, tower.embed_dim) == (patches, width, embedding)
    assert tower.image_size == (side, side)
    assert tower.mean == (0.1, 0.2, 0.3)
    assert tower.tokens(torch.empty(1, 3, side, side, device="meta")).shape == (1, 1 + patches, width)


def pixel_statistics(model: nn.Module) -> tuple[Any, Any]:
    tower = adapt(model)
    return tower.mean, tower.std


def test_pixel_statistics_come_from_the_library_or_the_family() -> None:
    openai = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    for name in ("open_clip-gelu", "openai", "transformers-clip", "transformers-metaclip2"):
        assert pixel_statistics(VARIANTS[name]()) == openai
    for name in ("timm-siglip", "transformers-siglip", "transformers-siglip-vision"):
        assert pixel_statistics(VARIANTS[name]()) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    model = VARIANTS["timm-siglip"]()
    model.visual.image_mean, model.visual.image_std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    assert pixel_statistics(model) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    model.visual.preprocess_cfg = {"mean": (0.7, 0.7, 0.7), "std": (0.2, 0.2, 0.2)}
    assert pixel_statistics(model) == ((0.7, 0.7, 0.7), (0.2, 0.2, 0.2))


def test_openai_statistics_on_a_siglip_model_are_pointed_out() -> None:
    model = VARIANTS["timm-siglip"]()
    model.visual.image_mean = open_clip.OPENAI_DATASET_MEAN
    model.visual.image_std = open_clip.OPENAI_DATASET_STD
    with pytest.warns(UserWarning, match="set OpenAI's pixel mean and std on this SigLIP model"):
        tower = adapt(model)
    assert tower.mean == open_clip.OPENAI_DATASET_MEAN
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tower.frozen_copy()
        adapt(VARIANTS["timm-siglip"]())


def test_quick_gelu_weights_in_a_gelu_model_are_pointed_out() -> None:
    gelu, quick = VARIANTS["open_clip-gelu"](), VARIANTS["open_clip-quick-gelu"]()
    with pytest.warns(UserWarning, match="trained with QuickGELU: .*force_quick_gelu=True"):
        assert not check_quick_gelu(gelu, "ViT-L-14", "openai")
    with pytest.warns(UserWarning, match="trained with GELU: .*force_quick_gelu=False"):
        assert not check_quick_gelu(quick, "ViT-L/14", "laion2b_s32b_b82k")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_quick_gelu(quick, "ViT-L-14", "openai")
        assert check_quick_gelu(gelu, "ViT-L-14", "laion2b_s32b_b82k")
        assert check_quick_gelu(gelu, "ViT-L-14", "/some/file.safetensors")


def test_a_tower_is_its_own_adaptation_and_its_text_names_family_and_sizes() -> None:
    tower = adapt(VARIANTS["timm-siglip"]())
    assert isinstance(tower, Tower) and adapt(tower) is tower
    text = "Tower(timm, VisionTransformer: 16 patches of width 32 from 32x32 pixels, embedding 32)"
    assert repr(tower) == text


def test_pixel_statistics_of_a_folder_are_those_of_its_processor(tmp_path: Path) -> None:
    own = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2}
    VARIANTS["transformers-clip"]().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(own))
    for kind in (transformers.CLIPModel, transformers.CLIPVisionModel):
        tower = adapt(kind.from_pretrained(tmp_path))
        assert (tower.mean, tower.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        assert tower.frozen_copy().mean == tower.mean
    folder = to_transformers(transformers.CLIPModel.from_pretrained(tmp_path), tmp_path / "exported")
    assert json.loads((folder / "preprocessor_config.json").read_text()) == own
    (tmp_path / "preprocessor_config.json").write_text("[")
    assert adapt(transformers.CLIPModel.from_pretrained(tmp_path)).mean == open_clip.OPENAI_DATASET_MEAN
