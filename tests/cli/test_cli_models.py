"""CLIP models that the command line builds from a name, a file or a folder."""

import json
from types import SimpleNamespace

import open_clip
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from builders.cli import CONFIG, MODEL
from builders.small import small_clip
from diva_rs._base.stored import read_facts
from diva_rs.cli import suite
from diva_rs.cli.clips import load_clip
from diva_rs.cli.models import load_other
from diva_rs.clip.export import to_open_clip
from diva_rs.clip.libraries.open_clip import names_for
from diva_rs.errors import ConfigError, WeightsError


def load(spec, precision="fp32"):
    return load_clip(str(spec), torch.device("cpu"), precision)


def test_an_open_clip_model_with_a_weights_file(tmp_path):
    own = small_clip(seed=5)
    save_file(own.state_dict(), tmp_path / "clip.safetensors")
    model = load(f"{MODEL}:{tmp_path / 'clip.safetensors'}")
    assert all(torch.equal(value, own.state_dict()[name]) for name, value in model.state_dict().items())


def test_weights_that_are_damaged_or_do_not_fit(tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"not weights")
    with pytest.raises(WeightsError, match=r"bad\.safetensors is text"):
        load(f"{MODEL}:{tmp_path / 'bad.safetensors'}")
    save_file({"visual.proj": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"other\.safetensors could not be loaded: ln_final\.bias"):
        load(f"{MODEL}:{tmp_path / 'other.safetensors'}")


UNKNOWN = [
    ("ViT-L14", "no CLIP model 'ViT-L14'; did you mean 'ViT-L-14'"),
    ("./clips", r"no CLIP model '\./clips': open_clip does not list it, and it is not a folder"),
    ("ViT-L-14-quickgelu:openay", "neither a pretrained tag nor a file; did you mean 'openai'"),
    (f"{MODEL}:x", f"{MODEL}:x is neither a pretrained tag nor a file: its tags are none"),
    (".", r"holds neither a config\.json"),
]


@pytest.mark.parametrize(("spec", "words"), UNKNOWN)
def test_unknown_models_and_tags_suggest_near_ones(spec, words):
    with pytest.raises(ConfigError, match=words):
        load(spec)


def test_weights_trained_with_quickgelu_are_built_with_it(monkeypatch, capsys):
    given = []
    monkeypatch.setattr(open_clip, "create_model", lambda *a, **k: given.append((a, k)) or nn.Identity())
    for spec in ("ViT-B-32:openai", "ViT-B-32-quickgelu:openai", "ViT-B-32:laion2b_s34b_b79k"):
        load(spec)
    assert [keywords["force_quick_gelu"] for _, keywords in given] == [True, True, False]
    assert capsys.readouterr().err.count("is built with QuickGELU, as trained") == 1
    with pytest.raises(ConfigError, match="trained without QuickGELU: use ViT-B-32:laion2b_s34b_b79k"):
        monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda name: ["laion2b_s34b_b79k"])
        monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: {"url": "x"})
        load("ViT-B-32-quickgelu:laion2b_s34b_b79k")


def test_an_open_clip_folder(tmp_path):
    own = small_clip(seed=6)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {}}))
    save_file(own.state_dict(), tmp_path / "open_clip_model.safetensors")
    model = load(tmp_path)
    assert torch.equal(model.visual.proj, own.visual.proj)
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(WeightsError, match="could not be loaded"):
        load(tmp_path)


VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.mark.parametrize("family", ["CLIP", "Siglip"])
def test_a_transformers_folder(tmp_path, family):
    config = getattr(transformers, f"{family}VisionConfig")(**VISION)
    own = getattr(transformers, f"{family}VisionModel")(config).half()
    own.save_pretrained(tmp_path)
    model = load(tmp_path, "fp64")
    assert type(model) is type(own)
    assert all(value.dtype == torch.float64 for value in model.parameters())
    for name, value in own.named_parameters():
        assert torch.equal(model.get_parameter(name), value.double())


def test_a_transformers_folder_that_lacks_a_weight_or_holds_something_else(tmp_path):
    own = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION))
    own.save_pretrained(tmp_path)
    state = {name: value for name, value in own.state_dict().items() if "post_layernorm.weight" not in name}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        WeightsError, match=r"lacks 1 weights of its CLIPVisionModel, the first is .*post_layernorm"
    ):
        load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"model\.safetensors is empty: download it again"):
        load(tmp_path)
    transformers.BertConfig(architectures=["BertModel"]).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="holds a BertModel, which has no vision tower"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json cannot be used"):
        load(tmp_path)


@pytest.fixture
def quick(tmp_path):
    """The file of a model that was built with QuickGELU under the plain name."""
    clip = open_clip.create_model(MODEL, force_quick_gelu=True, force_preprocess_cfg={"mean": (0.5,) * 3})
    return to_open_clip(clip, tmp_path / "clip.safetensors")


def test_a_file_is_built_as_it_was_trained(quick, capsys):
    model = load(f"{MODEL}:{quick}")
    assert type(model.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    assert type(model.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    assert model.visual.preprocess_cfg["mean"] == (0.5, 0.5, 0.5)
    assert f"the result loads as {MODEL} with force_quick_gelu=True" in capsys.readouterr().err


def test_a_file_of_gelu_under_a_name_with_quick_gelu_is_refused(tmp_path):
    path = to_open_clip(open_clip.create_model(MODEL), tmp_path / "clip.safetensors")
    (tmp_path / "twin.json").write_text(json.dumps({**CONFIG, "quick_gelu": True}))
    open_clip.add_model_config(tmp_path / "twin.json")
    try:
        with pytest.raises(WeightsError, match=r"activation was \['gelu'\], is \['quick_gelu'\]"):
            load(f"twin:{path}")
    finally:
        open_clip.factory._MODEL_CONFIGS.pop("twin")


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_file_that_does_not_say_its_activation_is_noted(ending, tmp_path, capsys):
    path = tmp_path / f"clip.{ending}"
    (torch.save if ending == "pt" else save_file)(small_clip().state_dict(), path)
    load(f"{MODEL}:{path}")
    assert f"{MODEL} computes gelu: weights of OpenAI, MetaCLIP and DFN" in capsys.readouterr().err


PREFIXES = ("module.", "class_model.model.", "model.clip._orig_mod.")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_and_what_lies_beside_it_are_left_out(prefix, tmp_path):
    own = small_clip(seed=7).state_dict()
    inner = "blocks.1.", "blocks.1._checkpoint_wrapped_module."  # torch's wrapper around a part
    weights = {prefix + name.replace(*inner): value for name, value in own.items()}
    weights["unet.conv.weight"] = torch.zeros(3)
    torch.save({"state_dict": weights}, tmp_path / "a.pth")
    model = load(f"{MODEL}:{tmp_path / 'a.pth'}")
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    weights |= {f"ema.{name}": value for name, value in own.items()}
    torch.save(weights, tmp_path / "b.pth")
    prefix = prefix.removesuffix("_orig_mod.")
    with pytest.raises(WeightsError, match=rf"a model under each of {prefix}, ema\.|each of ema\., {prefix}"):
        load(f"{MODEL}:{tmp_path / 'b.pth'}")


def test_the_other_layout_of_the_text_tower(tmp_path):
    own = small_clip(seed=7).state_dict()
    text = ("transformer.", "token_emb", "positional", "ln_final", "text_proj")
    named = {f"text.{name}" if name.startswith(text) else name: value for name, value in own.items()}
    save_file(named, tmp_path / "a.safetensors")
    model = load(f"{MODEL}:{tmp_path / 'a.safetensors'}")
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())


def test_weights_of_another_size_are_refused_with_the_names_that_fit(tmp_path):
    with torch.device("meta"):
        published = open_clip.create_model("ViT-B-32", device="meta").state_dict()
    assert {"ViT-B-32", "ViT-B-32-quickgelu"} <= set(names_for(published))
    own = small_clip()
    own.visual.positional_embedding = nn.Parameter(torch.zeros(65, 32))  # of 64 x 64 pixels
    save_file(own.state_dict(), tmp_path / "a.safetensors")
    (tmp_path / "diva-cli-64.json").write_text(
        json.dumps({**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], "image_size": 64}})
    )
    open_clip.add_model_config(tmp_path / "diva-cli-64.json")
    try:
        with pytest.raises(
            WeightsError, match=r"positional_embedding is .*its sizes are those of diva-cli-64"
        ):
            load(f"{MODEL}:{tmp_path / 'a.safetensors'}")
    finally:
        open_clip.factory._MODEL_CONFIGS.pop("diva-cli-64")


def test_the_folder_of_a_run(tmp_path, monkeypatch):
    own = small_clip(seed=8)
    save_file(own.state_dict(), tmp_path / "clip.safetensors")
    with pytest.raises(ConfigError, match=f"holds the weights of a run.*give {MODEL}:{tmp_path}"):
        load(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    for place in (tmp_path, f"~/{tmp_path.name}"):
        assert torch.equal(load(f"{MODEL}:{place}").visual.proj, own.visual.proj)


def test_weights_to_compare_with_take_the_same_pixels(tmp_path, capsys):
    device = torch.device("cpu")
    own, other = (
        f"{MODEL}:{to_open_clip(open_clip.create_model(MODEL, **settings), tmp_path / name)}"
        for name, settings in (
            ("a.safetensors", {}),
            ("b.safetensors", {"force_preprocess_cfg": {"mean": (0.5, 0.5, 0.5)}}),
        )
    )
    first = (load(own), None, None)
    place = other.split(":")[1]
    with pytest.raises(WeightsError, match=r"pixels mean was \[0\.5, 0\.5, 0\.5\], is .*give NAME:"):
        load_other(place, first, device, own)
    assert load_other(own.split(":")[1], first, device, own)[1:] == (None, None)


def test_a_checkpoint_of_a_run_with_another_activation_is_refused(quick, tmp_path):
    folder = tmp_path / "run" / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    save_file({"visual.proj": small_clip().visual.proj.data}, folder / "parameters.safetensors")
    base = to_open_clip(open_clip.create_model(MODEL), tmp_path / "base.safetensors")
    spec, options = f"{MODEL}:{base}:{folder}", SimpleNamespace(tokenizer=None)
    suite._load(spec, spec, options, torch.device("cpu"))
    (tmp_path / "run" / "run.json").write_text(json.dumps({"clip_computes": read_facts(quick)}))
    with pytest.raises(WeightsError, match=r"activation was \['quick_gelu'\], is \['gelu'\]"):
        suite._load(spec, spec, options, torch.device("cpu"))
