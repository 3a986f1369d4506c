"""A tiny model, a teacher's folder and photographs for the command line."""

import json
from types import SimpleNamespace

import open_clip
import pytest
import torch
from PIL import Image

from builders.cli import CONFIG, MODEL, SCORED, SCORED_CONFIG
from builders.diffusion import tiny_pipeline
from diva_rs._base.checkpoint import save_weights
from diva_rs.run import post_training


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
    tiny_pipeline().save_pretrained(root)
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

    monkeypatch.setattr(post_training, "post_train", record)
    return calls


@pytest.fixture
def command(teacher, photos, tmp_path):
    clip, out = ("--clip", MODEL), ("--output-dir", str(tmp_path / "run"))
    return ["train", *clip, "--teacher", teacher, "--data", photos, *out, "--workers", "0", "--device", "cpu"]
