"""What a model computes beyond its weights: written into files and runs, compared on loading."""

import json
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers.activations import ACT2FN

import diva_rs
from builders.clips import clip_variants
from builders.small import images, small_clip, small_teacher
from diva_rs._base.stored import read_facts
from diva_rs.clip import check_quick_gelu, facts
from diva_rs.clip.export import to_open_clip
from diva_rs.clip.facts import activation, differences
from diva_rs.clip.weights import fill, stored
from diva_rs.errors import ConfigError, WeightsError

VARIANTS = clip_variants()


@pytest.mark.parametrize("name", ["quick_gelu", "gelu", "gelu_pytorch_tanh", "silu", "relu"])
def test_activations_are_recognised_by_what_they_compute(name):
    assert activation(ACT2FN[name]) == name


def test_an_activation_that_works_in_place():
    assert activation(nn.ReLU(inplace=True)) == "relu"


@pytest.mark.parametrize("layer", [nn.Identity(), nn.Dropout(0.5), nn.Linear(13, 13), nn.Flatten()])
def test_other_layers_are_no_activation(layer):
    assert activation(layer.train()) is None and layer.training


def test_facts_are_json_and_say_activation_heads_pooling_and_pixels():
    found = facts(nn.DataParallel(VARIANTS["open_clip-avg-norm-after"]()))
    assert json.loads(json.dumps(found)) == found
    assert found["model"] == "CLIP" and found["diva_rs"] == diva_rs.__version__
    assert found["vision"] == {
        "activation": ["gelu"],
        "final_ln_after_pool": [True],
        "heads": [2],
        "norm_eps": [1e-5],
        "pool_type": ["avg"],
    }
    assert found["text"]["activation"] == ["gelu"]
    siglip = facts(VARIANTS["timm-siglip"]())
    assert siglip["pixels"] == {"size": [32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
    assert siglip["vision"]["global_pool"] == ["map"] and siglip["vision"]["norm_eps"] == [1e-6]
    for quick in ("openai", "transformers-clip", "open_clip-openai-weights"):
        assert facts(VARIANTS[quick]())["vision"]["activation"] == ["quick_gelu"]


def fill_from(model, path):
    found = stored(path, "file")
    fill(model, found.weights, "file", found.facts)


# Models of equal keys and shapes that compute something else, and the words that say what.
OTHERS = {
    "activation": (VARIANTS["open_clip-quick-gelu"], r"activation was \['quick_gelu'\], is \['gelu'\]"),
    "heads": (partial(small_clip, head_width=8), r"vision heads was \[4\], is \[2\]"),
    "pooling": (partial(small_clip, pool_type="avg"), r"pool_type was \['avg'\], is \['tok'\]"),
    "norm": (partial(small_clip, final_ln_after_pool=True), r"ln_after_pool was \[True\], is \[False\]"),
    "eps": (partial(small_clip, norm_kwargs={"eps": 1e-6}), r"norm_eps was \[1e-06\], is \[1e-05\]"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_weights_of_a_model_that_computes_something_else_are_refused(name, tmp_path):
    make, words = OTHERS[name]
    other = make()
    own = VARIANTS["open_clip-gelu"]() if name == "activation" else small_clip()
    path = to_open_clip(other, tmp_path / "clip.safetensors")
    before = own.visual.proj.clone()
    with pytest.raises(WeightsError, match=words):
        fill_from(own, path)
    assert torch.equal(own.visual.proj, before)
    with pytest.raises(WeightsError, match=words):
        diva_rs.interpolate(path, own, 0.5)
    fill_from(make(), path)


def test_a_run_writes_and_compares_them(tmp_path):
    clip = VARIANTS["open_clip-quick-gelu"]()
    run = partial(
        diva_rs.post_train, unet=small_teacher(), loader=[images(2)], output_dir=tmp_path, progress=False
    )
    run(clip, steps=1, schedule="constant")
    written = read_facts(tmp_path / "clip.safetensors")
    assert written == facts(clip) == json.loads((tmp_path / "run.json").read_text())["clip_computes"]
    assert not differences(written, facts(clip))
    plain = VARIANTS["open_clip-gelu"]()
    plain.load_state_dict(clip.state_dict())
    with pytest.raises(ConfigError, match=r"clip's vision activation was \['quick_gelu'\], is \['gelu'\]"):
        run(plain, steps=2, schedule="constant")


def test_check_quick_gelu_reads_files(tmp_path):
    quick = VARIANTS["open_clip-quick-gelu"]()
    path = str(to_open_clip(quick, tmp_path / "clip.safetensors"))
    assert check_quick_gelu(quick, "ViT-L-14", path)
    with pytest.warns(UserWarning, match="trained with QuickGELU: .*force_quick_gelu=True"):
        assert not check_quick_gelu(VARIANTS["open_clip-gelu"](), "ViT-L-14", path)


@pytest.mark.parametrize(
    "content", ["3", '{"vision": 3}', '{"vision": {"activation": 7}}', '{"vision": {"heads": null}}']
)
def test_facts_of_a_foreign_form_are_compared_where_they_can_be(content, tmp_path):
    clip = small_clip()
    save_file(clip.state_dict(), tmp_path / "clip.safetensors", metadata={"diva_rs": content})
    if content == "3" or content == '{"vision": 3}':
        fill_from(clip, tmp_path / "clip.safetensors")
    else:
        with pytest.raises(WeightsError, match="computes something else"):
            fill_from(clip, tmp_path / "clip.safetensors")


def test_facts_that_are_no_json_are_named(tmp_path):
    save_file(small_clip().state_dict(), tmp_path / "clip.safetensors", metadata={"diva_rs": "{"})
    with pytest.raises(WeightsError, match=r"clip\.safetensors: its metadata cannot be read"):
        stored(tmp_path / "clip.safetensors", "file")
