"""The models and folders that the documentation's examples run with are the world's own."""

import pytest
import torch

from diva_rs import ConfigError, Teacher, microworld
from diva_rs.cli.models import load_scored
from diva_rs.evaluation import mmvp_vlm


def test_the_written_models_are_the_same(tmp_path):
    """Through transformers and diffusers, with the tokenizers in their files."""
    folder, world = microworld.write_models(tmp_path), microworld.Microworld()
    words = ["a photo of a fish coloured red marked A", "a photo of an arrow."]
    teacher = Teacher(folder / "diffusion")
    assert torch.allclose(teacher.texts(words), world.encode(words), atol=1e-5)
    clip, preprocess, tokenizer = microworld.example("clip", "preprocess", "tokenizer")
    microworld.write_mmvp(tmp_path / "MMVP_VLM", per_pattern=3)
    expected = mmvp_vlm(clip, preprocess, tokenizer, tmp_path / "MMVP_VLM")
    weights = folder / "clip" / "model.safetensors"
    for spec in (folder / "clip", f"{folder / 'clip'}:{weights}"):
        found = mmvp_vlm(*load_scored(str(spec), torch.device("cpu")), tmp_path / "MMVP_VLM")
        assert [pair.correct for pair in found.pairs] == [pair.correct for pair in expected.pairs]


def test_an_unknown_part_is_named():
    with pytest.raises(ConfigError, match="example has no 'unet', but clip, teacher, images, loader"):
        microworld.example("clip", "unet")
