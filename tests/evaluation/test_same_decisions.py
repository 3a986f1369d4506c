"""One set of weights in every library, each with its own tokenizer and preprocessing: the same decisions."""

import json
import re

import numpy as np
import open_clip
import pytest
import torch
import transformers
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from builders import exports, openai_clip
from builders.detail import naturalbench, pairs_jsonl, spec, sugarcrepe, sugarcrepe_pp, table, whatsup
from builders.mmvp import mmvp_folder
from builders.texts import tokenize
from diva_rs import export
from diva_rs.evaluation import Embedder, find_benchmarks, mmvp_vlm, read_benchmark, zero_shot_folder
from diva_rs.evaluation.scoring import score_folder

NAME = "diva-same-decisions"
CONFIG = {
    "embed_dim": 20,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 1, "head_width": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Every benchmark, with pictures of many colours in place of flat ones."""
    root = tmp_path_factory.mktemp("data")
    mmvp_folder(root / "MMVP", pairs=3)
    naturalbench(root / "NaturalBench", ["group"] * 9)
    pairs_jsonl(root / "own", ["group"] * 9)
    table(root / "Winoground", ["group"] * 9, "winoground")
    table(root / "VisMin", ["group"] * 9, "vismin")
    sugarcrepe(root / "SugarCrepe", {"swap_obj": [True] * 9, "add_att": [True] * 9})
    sugarcrepe_pp(root / "SugarCrepe++", {"swap_obj": [(True, True)] * 9})
    whatsup(root / "WhatsUp")
    spec(root / "SPEC", {"count": {"image2text": [True] * 6, "text2image": [True] * 3}})
    rng = np.random.default_rng(0)
    for file in sorted(root.rglob("*")):
        if file.suffix in (".png", ".jpg", ".jpeg"):
            # Of the models' size: what resizing rounds is compared by itself.
            photograph(rng, (32, 32)).save(file, format="PNG")
    return root


def photograph(rng, size):
    small = Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def clip_everywhere(folder):
    """Library -> (model, preprocess, tokenizer), with one set of weights."""
    (folder / f"{NAME}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder / f"{NAME}.json")
    try:
        torch.manual_seed(0)
        model, _, preprocess = open_clip.create_model_and_transforms(NAME)
        tokenizer = open_clip.get_tokenizer(NAME)
    finally:
        open_clip.factory._MODEL_CONFIGS.pop(NAME)
    place = export.to_transformers(model, folder / "clip")
    processor = transformers.CLIPProcessor.from_pretrained(place)
    state = torch.load(export.to_openai(model, folder / "clip.pt"), weights_only=True)
    openai = openai_clip.CLIP(20, width=64, layers=1, context=77, vocabulary=49408)
    openai.load_state_dict(state)
    return {
        "open_clip": (model, preprocess, tokenizer),
        "transformers": (transformers.CLIPModel.from_pretrained(place), processor, processor),
        "OpenAI": (openai, preprocess, open_clip.tokenize),
        "open_clip, tokenizer of transformers": (model, preprocess, processor.tokenizer),
        "transformers, tokenizer of open_clip": (
            transformers.CLIPModel.from_pretrained(place),
            processor.image_processor,
            tokenizer,
        ),
    }


def siglip_everywhere(folder):
    """The same of SigLIP, which reads the last token and has no end token."""
    torch.manual_seed(0)
    model = exports.MODELS["siglip"]()
    place = export.to_transformers(model, folder / "siglip")
    processor = transformers.SiglipImageProcessor.from_pretrained(place)
    transform = image_transform_v2(
        PreprocessCfg(
            size=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", resize_mode="squash"
        ),
        is_train=False,
    )
    return {
        # As open_clip's tokenizer of SigLIP does; the texts of transformers are made lower-case for it.
        "timm": (model, transform, lambda texts: tokenize([text.lower() for text in texts])),
        "transformers": (transformers.SiglipModel.from_pretrained(place), processor, tokenize),
    }


@pytest.mark.parity
@pytest.mark.parametrize("everywhere", [clip_everywhere, siglip_everywhere])
def test_every_library_decides_alike(data, tmp_path, everywhere):
    found = list(find_benchmarks(data))
    assert len(found) == 9
    scores = {}
    for library, model in everywhere(tmp_path).items():
        decisions = {"mmvp": mmvp_vlm(*model, data / "MMVP").outcomes}
        folder = zero_shot_folder(*model, data / "MMVP" / "MLLM_VLM Images")
        decisions["zero-shot"] = tuple(picked for _, _, picked in folder.predictions)
        for place, name in found:
            kind = (
                "pairs"
                if name in ("mmvp-vlm", "naturalbench", "pairs", "winoground", "vismin")
                else "captions"
            )
            result = score_folder(model, place, name, kind, {})
            assert [task.rule for task in read_benchmark(place, name).tasks] == list(result.rules)
            decisions |= {f"{name}, {rule}": result[rule].outcomes for rule in result.rules}
        scores[library] = decisions
    first, *others = scores.values()
    assert len(first) == 2 + 5 * 3 + 1 + 2 + 3 + 2
    assert sum(sum(outcomes) for name, outcomes in first.items() if name != "zero-shot") > 5
    for other in others:
        assert other == first


@pytest.mark.parity
@pytest.mark.parametrize("size", [(60, 70), (33, 200), (200, 64), (32, 32)])
@pytest.mark.parametrize("everywhere", [clip_everywhere, siglip_everywhere])
def test_every_library_sees_the_same_pixels(tmp_path, everywhere, size):
    image = photograph(np.random.default_rng(1), size)
    seen = [Embedder(*model).transform(image) for model in everywhere(tmp_path).values()]
    for pixels in seen[1:]:
        # One grey level at most, which the libraries round in different ways.
        torch.testing.assert_close(pixels, seen[0], rtol=0, atol=1.01 / 255 / 0.26)


@pytest.mark.parametrize("mean,warned", [(None, False), ((0.5, 0.5, 0.5), True)])
def test_pixels_on_another_models_scale_are_warned_of(tmp_path, recwarn, mean, warned):
    model, preprocess, tokenizer = clip_everywhere(tmp_path)["open_clip"]
    if mean is not None:
        preprocess = image_transform_v2(PreprocessCfg(size=32, mean=mean, std=mean), is_train=False)
    Embedder(model, preprocess, tokenizer)
    words = r"preprocess turns white into \[1.0, 1.0, 1.0\], the model's own mean and deviation into \[1.9"
    assert any(re.match(words, str(w.message)) for w in recwarn) == warned
