"""A tiny model, a teacher's folder and photographs for the command line."""

import json
from types import SimpleNamespace

import open_clip
import pytest
import torch
import transformers
from PIL import Image

from builders.cli import CONFIG, MODEL, SCORED, SCORED_CONFIG
from builders.small import WIDTH, scheduler, small_unet, small_vae
from diva_rs._base.checkpoint import save_weights
from diva_rs.cli import train


@pytest.fixture(scope="module", autouse=True)
def weights(tmp_path_factory):
    """open_clip knows the tiny models by name; a folder with the weights of two runs of the second one."""
    folder = tmp_path_factory.mktemp("weights")
    for name, config in ((MODEL, CONFIG), (SCORED, SCORED_CONFIG)):
        (folder / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(folder / f"{name}.json")
    for seed, place in enumerate(["before", "after"]):
        torch.manual_seed(seed)
        (folder / place).mkdir()
        save_weights(folder / place / "clip.safetensors", open_clip.create_model(SCORED).state_dict())
    yield folder
    for name in (MODEL, SCORED):
        open_clip.factory._MODEL_CONFIGS.pop(name)


@pytest.fixture
def clip(weights):
    """The second model as the command line names it."""
    return f"{SCORED}:{weights / 'before' / 'clip.safetensors'}"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A diffusers folder with everything that a teacher needs."""
    root = tmp_path_factory.mktemp("teacher")
    small_unet().save_pretrained(root / "unet")
    small_vae().save_pretrained(root / "vae")
    scheduler().save_pretrained(root / "scheduler")
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256))]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (root / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    config = {"_class_name": "CLIPTokenizer", "tokenizer_class": "CLIPTokenizer", "model_max_length": 12}
    (root / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    text = transformers.CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=len(tokens) - 2,
        eos_token_id=len(tokens) - 1,
    )
    transformers.CLIPTextModel(text).save_pretrained(root / "text_encoder")
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (root / "model_index.json").write_text(json.dumps(index))
    return str(root)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(6):
        Image.new("RGB", (24, 20), (40 * number, 255 - 40 * number, 99)).save(folder / f"{number}.png")
    return str(folder)


@pytest.fixture
def trained(monkeypatch):
    """Replace the training itself by a record of what it was given."""
    calls = []

    def record(clip, teacher, loader, recipe, **others):
        calls.append(SimpleNamespace(clip=clip, teacher=teacher, loader=loader, recipe=recipe, **others))
        report = {"steps": 3}
        return SimpleNamespace(
            report=report, history=[{"loss": 0.5}, {"loss": 0.25}], interrupted=len(calls) > 1
        )

    monkeypatch.setattr(train, "_post_train", record)
    return calls


@pytest.fixture
def command(teacher, photos, tmp_path):
    clip, out = ("--clip", MODEL), ("--output-dir", str(tmp_path / "run"))
    return ["train", *clip, "--teacher", teacher, "--data", photos, *out, "--workers", "0", "--device", "cpu"]
