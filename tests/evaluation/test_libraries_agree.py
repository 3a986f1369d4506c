"""One set of weights, exported to every library: its tokenizer and its pixels give the same decisions."""

import json
from functools import partial

import numpy as np
import open_clip
import pytest
import torch
import transformers
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

from builders import clips, detail, exports, openai_clip
from builders.benchmarks import photos_folder
from builders.mmvp import mmvp_folder
from builders.texts import word_tokenizer
from diva_rs.clip.export import to_open_clip, to_openai, to_transformers
from diva_rs.clip.tower import OPENAI_MEAN, OPENAI_STD
from diva_rs.evaluation import (
    Bank,
    Embedder,
    find_benchmarks,
    read_benchmark,
    score_benchmark,
    zero_shot_folder,
)

NAME = "diva-agreeing"
CLIP = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}
SIGLIP = {
    **exports.SIGLIP,
    "vision_cfg": {**exports.SIGLIP["vision_cfg"], "timm_model_name": "diva_test_siglip"},
}


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    """Every format in one folder, and an image folder; the images are coarse patterns of many sizes."""
    root = tmp_path_factory.mktemp("benchmarks")
    plans = ["group"] * 12
    mmvp_folder(root / "mmvp", pairs=2)
    detail.naturalbench(root / "naturalbench", plans)
    detail.pairs_jsonl(root / "mine", plans)
    captions = (root / "mine" / "pairs.jsonl").read_text()  # as they come out of documents and web pages
    captions = captions.replace("left of cat", "\u201cleft\u201d &amp; the cat\u2019s_mat,")
    (root / "mine" / "pairs.jsonl").write_text(captions, encoding="utf-8")
    for name in ("winoground", "vismin"):
        detail.table(root / name, plans, name)
    detail.sugarcrepe(root / "sugarcrepe", {"swap_obj": [True] * 12, "add_att": [True] * 12})
    detail.sugarcrepe_pp(root / "sugarcrepe_pp", {"swap_obj": [(True, True)] * 12})
    detail.whatsup(root / "whatsup", extra=4)
    detail.spec(root / "spec", {"count": {"image2text": [True] * 6, "text2image": [True] * 6}})
    for number, file in enumerate(
        sorted(p for p in root.rglob("*") if p.suffix in (".jpg", ".jpeg", ".png"))
    ):
        random = np.random.default_rng(number)
        coarse = Image.fromarray(random.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        coarse.resize(tuple(random.integers(33, 90, 2)), Image.Resampling.BICUBIC).save(file, format="PNG")
    return root, photos_folder(root, per_class=12)


@pytest.fixture
def open_clip_name(tmp_path):
    """Registers a configuration with open_clip."""

    def register(config):
        (tmp_path / f"{NAME}.json").write_text(json.dumps(config))
        open_clip.add_model_config(tmp_path / f"{NAME}.json")

    yield register
    open_clip.factory._MODEL_CONFIGS.pop(NAME)


def libraries(family, folder, register):
    """Library -> (model, preprocess, tokenizer), each loaded by the library from its own export."""
    config = {"clip": CLIP, "siglip": SIGLIP}[family]
    register(config)
    pixels = {}
    if family == "siglip":  # open_clip reads them from the Hub's configurations
        pixels = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3, "image_resize_mode": "squash"}
    make = partial(open_clip.create_model_and_transforms, NAME, **pixels)
    model = clips._randomised(lambda: make()[0]).eval()
    file = to_open_clip(model, folder / "clip.safetensors")
    loaded, _, preprocess = make(pretrained=str(file))
    if family == "siglip":
        tokenizer = word_tokenizer(64, 1)
        place = str(to_transformers(model, folder / "siglip", processor=tokenizer))
        own = open_clip.tokenizer.HFTokenizer(place, context_length=8, clean="canonicalize")
        found = {"open_clip": (loaded.eval(), preprocess, own)}
    else:
        place = str(to_transformers(model, folder / "clip"))
        found = {"open_clip": (loaded.eval(), preprocess, open_clip.get_tokenizer(NAME))}
        state = torch.load(to_openai(model, folder / "clip.pt"), weights_only=True)
        own = openai_clip.CLIP(32, context=77, vocabulary=49408)
        own.load_state_dict(state)
        found["openai"] = (own.eval(), openai_transform(32), open_clip.tokenize)
    kind = transformers.SiglipModel if family == "siglip" else transformers.CLIPModel
    processor, words = transformers.AutoImageProcessor, transformers.AutoTokenizer
    parts = (processor.from_pretrained(place), words.from_pretrained(place))
    return {**found, "transformers": (kind.from_pretrained(place).eval(), *parts)}


def openai_transform(side):
    """clip/clip.py, `_transform`."""
    return Compose(
        [
            Resize(side, interpolation=InterpolationMode.BICUBIC),
            CenterCrop(side),
            lambda image: image.convert("RGB"),
            ToTensor(),
            Normalize(OPENAI_MEAN, OPENAI_STD),
        ]
    )


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_the_same_decisions_on_every_benchmark(tmp_path, benchmarks, open_clip_name, family):
    root, photos = benchmarks
    sets = [read_benchmark(*found) for found in find_benchmarks(root)]
    assert len(sets) == 9
    outcomes = {}
    for name, model in libraries(family, tmp_path, open_clip_name).items():
        bank = Bank(Embedder(*model))
        with torch.no_grad():
            results = [score_benchmark(benchmark, bank) for benchmark in sets]
        decisions = [one for result in results for rule in result.rules.values() for one in rule]
        outcomes[name] = [one.right for one in decisions] + list(zero_shot_folder(*model, photos).outcomes)
    first = outcomes.pop("open_clip")
    assert 0.1 < sum(first) / len(first) < 0.9 and len(first) > 300
    assert outcomes == dict.fromkeys(outcomes, first)
