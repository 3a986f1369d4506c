"""Exported models are the same models: reloaded by their libraries in a fresh process, and converted back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import transformers
from PIL import Image
from safetensors import safe_open

from builders import exports
from builders.clips import clip_variants
from diva_rs import ConfigError, DataError, WeightsError, cli
from diva_rs._base.checkpoint import load_weights
from diva_rs.clip.export import to_open_clip, to_openai, to_transformers

TESTS = Path(__file__).parents[1]

# job -> (source, how it is exported, the library that loads it, the name it loads by, whether to the bit)
JOBS = {
    "vit.safetensors": ("vit", to_open_clip, "open_clip", "small-vit", True),
    "vit.pt": ("vit", to_open_clip, "open_clip", "small-vit", True),
    "vit-as-clip": ("vit", to_transformers, "transformers", "CLIPModel", False),
    "vit-as-vision": ("vit", to_transformers, "transformers", "CLIPVisionModelWithProjection", False),
    "siglip.safetensors": ("siglip", to_open_clip, "open_clip", "small-siglip", True),
    "siglip-as-siglip": ("siglip", to_transformers, "transformers", "SiglipModel", False),
    "siglip-as-vision": ("siglip", to_transformers, "transformers", "SiglipVisionModel", False),
    "openai.pt": ("openai", to_openai, "openai", "", True),
    "openai.safetensors": ("openai", to_open_clip, "open_clip", "small-openai", False),
    "openai-as-clip": ("openai", to_transformers, "transformers", "CLIPModel", False),
    "hf-clip": ("transformers-clip", to_transformers, "transformers", "CLIPModel", True),
    "hf-clip.safetensors": ("transformers-clip", to_open_clip, "open_clip", "small-hf", False),
    "hf-siglip": ("transformers-siglip", to_transformers, "transformers", "SiglipModel", True),
    "hf-siglip.safetensors": ("transformers-siglip", to_open_clip, "open_clip", "small-hf-siglip", False),
}


@pytest.fixture(scope="module")
def models():
    return {name: exports.model(name) for name in exports.MODELS}


@pytest.fixture(scope="module")
def exported(models, tmp_path_factory):
    """Every job's export, and what a fresh process computed with it."""
    folder = tmp_path_factory.mktemp("exports")
    narrow, tanh = {"mlp_ratio": 2.0}, {"mlp_ratio": 2.0, "act_kwargs": {"approximate": "tanh"}}
    for name, config, vision, text in (
        ("vit", exports.VIT, {}, {}),
        ("siglip", exports.SIGLIP, {}, {}),
        ("openai", exports.VIT, {"width": 64, "head_width": 64}, {"width": 64, "heads": 1}),
        ("hf", exports.VIT, narrow, narrow),
        ("hf-siglip", exports.SIGLIP, {"timm_model_name": "diva_test_siglip_tanh"}, tanh),
    ):
        parts = {"vision_cfg": config["vision_cfg"] | vision, "text_cfg": config["text_cfg"] | text}
        (folder / f"small-{name}.json").write_text(json.dumps({**config, **parts}))
    jobs = {}
    for job, (source, export, library, name, _) in JOBS.items():
        jobs[job] = (library, str(export(models[source], folder / job)), name)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "builders.exports", str(folder)]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=TESTS, env=offline, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("job", JOBS)
def test_a_fresh_process_computes_the_same_embeddings(models, exported, job):
    source, _, _, name, exact = JOBS[job]
    ours, theirs = exports.embeddings(models[source]), exports.reloaded(exported, job)
    assert theirs.keys() == ({"image"} if "Vision" in name else {"image", "text"})
    for key, value in theirs.items():
        if exact:
            assert torch.equal(value, ours[key]), key
        else:
            assert (value - ours[key]).norm() / ours[key].norm() < 1e-5, key


def test_weights_come_back_to_the_bit(models, exported, tmp_path):
    found = {}
    for job, back in (
        ("vit-as-clip", to_open_clip),
        ("siglip-as-siglip", to_open_clip),
        ("openai-as-clip", to_openai),
    ):
        there = getattr(transformers, JOBS[job][3]).from_pretrained(exported / job)
        found[job] = torch.load(back(there, tmp_path / "back.pt"), weights_only=True)
    for job, name in (("hf-clip", "small-hf"), ("hf-siglip", "small-hf-siglip")):
        open_clip.add_model_config(exported / f"{name}.json")
        there = open_clip.create_model(name, pretrained=str(exported / f"{job}.safetensors"))
        found[job] = load_weights(to_transformers(there, tmp_path / job) / "model.safetensors")
    for job, state in found.items():
        source = models[JOBS[job][0]].state_dict()
        assert state.keys() == source.keys()
        assert all(torch.equal(state[key], value) for key, value in source.items()), job


def test_llava_reads_its_tower(models, exported):
    """CLIPVisionModel from a full folder, its processor, and the hidden state that LLaVA takes."""
    for job in ("vit-as-clip", "vit-as-vision", "hf-clip"):
        tower, report = transformers.CLIPVisionModel.from_pretrained(exported / job, output_loading_info=True)
        assert not report["missing_keys"] and not report["mismatched_keys"]
        pixels = torch.randn(1, 3, 32, 32)
        with torch.no_grad():
            hidden = tower.eval()(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        assert hidden.shape == (1, 16, 32)
        processor = transformers.CLIPImageProcessor.from_pretrained(exported / job)
        assert (processor.crop_size["height"], processor.size["shortest_edge"]) == (32, 32)
        assert transformers.CLIPVisionConfig.from_pretrained(exported / job).hidden_size == 32


def test_the_keys_are_those_that_older_releases_load(exported):
    for job, (_, export, *_) in JOBS.items():
        if export is not to_transformers:
            continue
        with safe_open(exported / job / "model.safetensors", framework="pt") as file:
            assert file.metadata() == {"format": "pt"}  # transformers 4.x refuses a file without it
            keys = set(file.keys())
        heads = ("vision_model.", "text_model.", "visual_projection.", "text_projection.", "logit_")
        assert all(key.startswith(heads) for key in keys) and not any("position_ids" in key for key in keys)
        config = json.loads((exported / job / "config.json").read_text())
        assert config["torch_dtype"] == "float32" and "dtype" not in config  # the name that all of them read


def test_a_vision_only_model_of_transformers(tmp_path):
    for name, classes in {
        "transformers-clip-vision": ("CLIPVisionModel",),
        "transformers-clip-projection": ("CLIPVisionModelWithProjection", "CLIPVisionModel"),
        "transformers-siglip-vision": ("SiglipVisionModel",),
        "transformers-clip": ("CLIPVisionModelWithProjection", "CLIPVisionModel"),
        "transformers-siglip": ("SiglipVisionModel",),
        "transformers-metaclip2": ("MetaClip2VisionModelWithProjection",),
    }.items():
        model = clip_variants()[name]().eval()
        folder = to_transformers(model, tmp_path / name, vision_only=True)
        assert json.loads((folder / "config.json").read_text())["architectures"] == [classes[0]]
        again = getattr(transformers, classes[0]).from_pretrained(folder).eval()
        assert torch.equal(_pooled(model), _pooled(again)), name
        for other in classes[1:]:
            _, report = getattr(transformers, other).from_pretrained(folder, output_loading_info=True)
            assert not report["missing_keys"], name


def _pooled(model):
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pooled = getattr(model, "vision_model", model)(pixels)[1]
        return model.visual_projection(pooled) if hasattr(model, "visual_projection") else pooled


def test_the_processor_does_what_open_clip_does(tmp_path):
    """Both through PIL; the torchvision processors of transformers 5 resize a little differently."""
    through_pil = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    (tmp_path / "small-processor.json").write_text(json.dumps(exports.VIT))
    open_clip.add_model_config(tmp_path / "small-processor.json")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 45, 3), dtype=np.uint8))
    for given in ({}, {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3, "image_resize_mode": "squash"}):
        clip, _, preprocess = open_clip.create_model_and_transforms("small-processor", **given)
        folder = to_transformers(clip, tmp_path / "tower")
        processor = through_pil.from_pretrained(folder)
        theirs, ours = processor(images=image, return_tensors="pt")["pixel_values"][0], preprocess(image)
        assert theirs.shape == ours.shape and (theirs - ours).abs().max() < 1e-6


def test_a_siglip_gets_its_own_pixels(models, exported):
    config = json.loads((exported / "siglip-as-siglip" / "preprocessor_config.json").read_text())
    assert config["image_mean"] == config["image_std"] == [0.5, 0.5, 0.5]
    assert config["size"] == {"height": 32, "width": 32} and "crop_size" not in config
    processor = transformers.AutoImageProcessor.from_pretrained(exported / "siglip-as-siglip")
    assert "Siglip" in type(processor).__name__


def test_a_processor_of_the_callers_goes_with_the_model(models, tmp_path):
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, image_mean=[0.1, 0.2, 0.3])
    folder = to_transformers(models["vit"], tmp_path / "tower", processor=processor)
    again = transformers.CLIPImageProcessor.from_pretrained(folder)
    assert list(again.image_mean) == [0.1, 0.2, 0.3]


def test_the_shared_vocabulary_goes_with_a_full_model(tmp_path):
    config = {**exports.VIT, "text_cfg": {**exports.VIT["text_cfg"], "vocab_size": 49408}}
    model, read = exports._open_clip(config), transformers.AutoTokenizer.from_pretrained
    ours = open_clip.SimpleTokenizer(context_length=8)
    tokenizer = read(to_transformers(model, tmp_path / "full"))
    for text in ("A photo of 3 cafés, don't!", "", "a text of more than eight of its tokens", "日本"):
        (theirs,), expected = tokenizer([text], truncation=True)["input_ids"], ours(text)[0].tolist()
        assert theirs == expected[: len(theirs)] and not any(expected[len(theirs) :])
    assert not list(to_transformers(model, tmp_path / "vision", vision_only=True).glob("*token*"))
    # A tokenizer of the caller's is kept, and the image processor is written beside it.
    tokenizer.add_tokens(["<mine>"])
    folder = to_transformers(model, tmp_path / "own", processor=tokenizer)
    assert "<mine>" in read(folder).get_vocab() and (folder / "preprocessor_config.json").is_file()


def test_half_is_what_clip_load_keeps(models, tmp_path):
    state = torch.load(to_openai(models["openai"], tmp_path / "half.pt", half=True), weights_only=True)
    whole = models["openai"].state_dict()
    for key, value in state.items():
        half = not any(part in key for part in ("ln_", "embedding", "logit_scale"))
        assert value.dtype == (torch.float16 if half else torch.float32), key
        assert torch.equal(value, whole[key].to(value.dtype))


def test_open_clip_writes_any_model_of_its_own(tmp_path):
    for name in ("open_clip-layer-scale", "open_clip-coca", "timm-eva-token-head", "open_clip-custom-text"):
        model = clip_variants()[name]()
        found = load_weights(to_open_clip(torch.nn.DataParallel(model), tmp_path / "clip.safetensors"))
        assert found.keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("open_clip-layer-scale", WeightsError, r"resblocks\.0\.ls_1\.gamma .* has no place in the transfo"),
        ("open_clip-no-ln-pre", WeightsError, r"no visual\.ln_pre\.weight"),
        ("open_clip-custom-block", WeightsError, r"resblocks\.0\.attn\.head_scale .* has no place"),
        ("open_clip-avg", ConfigError, r"visual\.pool_type is 'avg'"),
        ("open_clip-oblong", ConfigError, r"image_size is 32 x 16"),
        ("open_clip-coca", WeightsError, r"^cls_emb \(and \d+ more keys\) has no place in the transformers"),
        ("timm-siglip-linear", ConfigError, r"the text tower masks tokens"),
        ("timm-eva-token-head", ConfigError, r"the text tower"),
    ],
)
def test_what_transformers_cannot_express_is_named(name, error, message, tmp_path):
    with pytest.raises(error, match=message):
        to_transformers(clip_variants()[name](), tmp_path / "tower")
    assert not (tmp_path / "tower").exists()


def test_what_openai_cannot_express_is_named(models, tmp_path):
    refused = {
        "open_clip-gelu": (ConfigError, r"visual: the activation is gelu, OpenAI's clip computes quick_gelu"),
        "open_clip-quick-gelu": (ConfigError, r"visual: the head width is 16\.0, .* 64"),
        "timm-siglip": (ConfigError, r"the text tower masks tokens"),
    }
    for name, (error, message) in refused.items():
        with pytest.raises(error, match=message):
            to_openai(clip_variants()[name](), tmp_path / "clip.pt")
    with pytest.raises(ConfigError, match="a SigLIP cannot be written"):
        to_openai(models["siglip"], tmp_path / "clip.pt")
    extra = exports.model("openai")
    extra.visual.transformer.resblocks[1].register_parameter("gate", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(
        WeightsError, match=r"^visual\.transformer\.resblocks\.1\.gate is not part of .* ResidualAttention"
    ):
        to_openai(extra, tmp_path / "clip.pt")
    assert list(tmp_path.iterdir()) == []


def test_what_open_clip_cannot_express_is_named(tmp_path):
    path = tmp_path / "clip.safetensors"
    vision = clip_variants()["transformers-clip-vision"]()
    with pytest.raises(ConfigError, match="CLIPVisionModel cannot be written in open_clip's layout"):
        to_open_clip(vision, path)
    relu = clip_variants()["transformers-clip"]()
    relu.config.text_config.hidden_act = "relu"
    with pytest.raises(ConfigError, match=r"text_config\.hidden_act is 'relu'"):
        to_open_clip(relu, path)
    assert not path.exists()


def test_slips_are_explained(models, tmp_path):
    vit = models["vit"]
    with pytest.raises(ConfigError, match=r"ends in '\.bin': a file that ends in \.safetensors or \.pt"):
        to_open_clip(vit, tmp_path / "clip.bin")
    with pytest.raises(ConfigError, match=r"Linear is not a full CLIP: give the whole model"):
        to_transformers(torch.nn.Linear(2, 2), tmp_path / "tower")
    with pytest.raises(WeightsError, match=r"a dense tensor that holds values is needed"):
        to_transformers(exports.model("vit").to("meta"), tmp_path / "tower")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match=r"mine holds 'thesis\.tex', which is not part of an export"):
        to_transformers(vit, tmp_path / "mine")
    with pytest.raises(DataError, match=r"thesis\.tex is a file"):
        to_transformers(vit, tmp_path / "mine" / "thesis.tex")
    assert {file.name for file in tmp_path.iterdir()} == {"mine"}


def test_an_export_replaces_an_earlier_one_or_leaves_it(models, tmp_path):
    folder = to_transformers(models["siglip"], tmp_path / "tower")
    to_transformers(models["vit"], folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "clip"

    class Broken:
        def save_pretrained(self, path):
            raise OSError("disk full")

    with pytest.raises(DataError, match=r"tower could not be written \(disk full\)"):
        to_transformers(models["siglip"], folder, processor=Broken())
    assert json.loads((folder / "config.json").read_text())["model_type"] == "clip"
    assert {file.name for file in tmp_path.iterdir()} == {"tower"}


def test_the_command_line(models, exported, tmp_path, capsys):
    weights = exported / "vit.safetensors"
    open_clip.add_model_config(exported / "small-vit.json")

    def export(*flags):
        return cli.main(["export", "--clip", f"small-vit:{weights}", *map(str, flags)])

    assert export("--to", "transformers", "--out", tmp_path / "tower", "--vision-only") == 0
    printed = capsys.readouterr().out
    assert f'transformers.CLIPVisionModel.from_pretrained("{tmp_path / "tower"}")' in printed
    assert "LLaVA" not in printed
    assert export("--to", "transformers", "--out", tmp_path / "siglip-like") == 0
    assert 'LLaVA picks the class by the path: give one without "siglip"' in capsys.readouterr().out
    theirs = load_weights(tmp_path / "tower" / "model.safetensors")
    assert torch.equal(theirs["visual_projection.weight"], models["vit"].visual.proj.T)
    assert not any(key.startswith("text_model") for key in theirs)

    assert export("--to", "open_clip", "--out", tmp_path / "clip.pt") == 0
    called = f'create_model_and_transforms("small-vit", pretrained="{tmp_path}/clip.pt")'
    assert called in capsys.readouterr().out
    argv = ["export", "--clip", exported / "hf-clip", "--to", "open_clip", "--out", tmp_path / "b.pt"]
    assert cli.main([str(flag) for flag in argv]) == 0
    assert 'create_model_and_transforms("NAME"' in capsys.readouterr().out

    for flags, message in {
        ("--to", "openai"): "the head width is 16.0",
        ("--to", "open_clip", "--half"): "--half goes with --to openai",
        ("--to", "open_clip", "--vision-only"): "--vision-only goes with",
    }.items():
        assert export(*flags, "--out", tmp_path / "o.pt") == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "o.pt").exists()


@pytest.mark.slow
def test_vit_b_32_at_its_own_size(tmp_path):
    """open_clip's ViT-B-32-quickgelu with random weights, through all three layouts."""
    torch.manual_seed(0)
    clip = open_clip.create_model("ViT-B-32-quickgelu").eval()
    own = clip.state_dict()
    ours = exports.embeddings(clip, side=224, vocab=49408, context=77)
    there, _, _ = open_clip.create_model_and_transforms(
        "ViT-B-32-quickgelu", pretrained=str(to_open_clip(clip, tmp_path / "clip.safetensors"))
    )
    again = exports.embeddings(there.eval(), side=224, vocab=49408, context=77)
    assert all(torch.equal(again[key], value) for key, value in ours.items())
    hf = transformers.CLIPModel.from_pretrained(to_transformers(clip, tmp_path / "tower")).eval()
    again = exports.embeddings(hf, side=224, vocab=49408, context=77)
    assert all((again[key] - value).norm() / value.norm() < 1e-5 for key, value in ours.items())
    for export, source in ((to_open_clip, hf), (to_openai, clip), (to_openai, hf)):
        found = torch.load(export(source, tmp_path / "back.pt"), weights_only=True)
        assert found.keys() == own.keys()
        assert all(torch.equal(found[key], value) for key, value in own.items())
    # What clip.load infers its sizes from (clip/model.py, build_model).
    assert found["visual.conv1.weight"].shape == (768, 3, 32, 32)
    assert found["visual.positional_embedding"].shape == (50, 768)
    assert sum(key.startswith("visual.") and key.endswith(".attn.in_proj_weight") for key in found) == 12
    assert (found["text_projection"].shape[1], found["positional_embedding"].shape[0]) == (512, 77)
