"""What the evaluation scores, held against the libraries' own embeddings and the official rules in words."""

import csv
import re

import numpy as np
import pytest
import torch
import transformers
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch.nn.functional import normalize

import diva_rs
from builders.clips import IMAGE, clip_variants, library_embedding, library_patches, pixels
from builders.mmvp import mmvp_folder
from builders.texts import tokenize, word_tokenizer
from diva_rs.clip import adapt
from diva_rs.clip.tower import OPENAI_MEAN, OPENAI_STD
from diva_rs.errors import ConfigError, ShapeError
from diva_rs.evaluation import EMBEDDINGS, mmvp_vlm
from diva_rs.evaluation.embedder import Embedder, image_embedding, image_transform
from diva_rs.evaluation.measures import evaluating

pytestmark = pytest.mark.parity

VARIANTS = clip_variants()
WITH_TEXT = [
    name
    for name in VARIANTS
    if not name.startswith("transformers-") or name in {
        "transformers-clip", "transformers-clip-tuples", "transformers-metaclip2", "transformers-siglip"
    }
]  # fmt: skip
TEXTS = ["a photo of one cat", "a photo of two dogs facing left"]
preprocess = image_transform_v2(PreprocessCfg(size=IMAGE), is_train=False)


def embedder(model, embedding="pooled", **settings):
    return Embedder(model, preprocess, tokenize, embedding, **settings)


@pytest.mark.parametrize("name", WITH_TEXT)
def test_the_pooled_embedding_is_the_librarys_own_to_the_bit(name):
    model = VARIANTS[name]().eval()
    images = pixels(model)
    with torch.no_grad():
        ours, theirs = embedder(model).encode_image(images), library_embedding(model, images)
    if name.startswith("open_clip-coca"):  # the library's method normalises unless it is told not to
        ours, theirs = normalize(ours, dim=-1), normalize(theirs, dim=-1)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    else:
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", WITH_TEXT)
def test_the_text_embedding_is_the_librarys_own_to_the_bit(name):
    model = VARIANTS[name]().eval()
    tokens = tokenize(TEXTS)
    with torch.no_grad():
        ours, theirs = embedder(model).encode_text(tokens), library_text(model, tokens)
    assert ours.ndim == 2 and torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["open_clip-gelu", "timm-siglip", "transformers-clip", "openai"])
def test_the_class_token_is_the_librarys_embedding(name):
    model = VARIANTS[name](torch.float64).eval()
    images = pixels(model, dtype=torch.float64)
    with torch.no_grad():
        for embedding in ("class", "official-dfn-224"):
            ours = embedder(model, embedding).encode_image(images)
            torch.testing.assert_close(ours, library_embedding(model, images), rtol=1e-10, atol=1e-12)
        assert torch.equal(
            embedder(model, "official-siglip").encode_image(images), library_embedding(model, images)
        )


@pytest.mark.parametrize("name", ["open_clip-gelu", "open_clip-quick-gelu", "transformers-clip", "openai"])
def test_the_published_embeddings_follow_their_rules(name):
    model = VARIANTS[name](torch.float64).eval()
    images = pixels(model, batch=3, dtype=torch.float64)
    with torch.no_grad():
        first, patches = library_embedding(model, images), library_patches(model, images)
        unit, units = normalize(first, dim=-1), normalize(patches, dim=-1)
        torch.testing.assert_close(
            embedder(model, "official-metaclip").encode_image(images), unit + units.mean(1)
        )
        for embedding, count, rows, token in (
            ("official-openai", 76, patches, first),
            ("official-dfn-378", 8, units, unit),
        ):
            ids = [1, 2, 77]
            ours = embedder(model, embedding, seed=5).encode_image(images, ids)
            for row, number in enumerate(ids):
                # Patches are drawn with replacement: their mean has 1/count as the weight of each draw.
                drawn = diva_rs.draw(5, [number], 1, (1,), 16, count, replacement=True).tokens[0, 0]
                assert len(drawn) == count
                expected = token[row] + torch.stack([rows[row, k] for k in drawn]).mean(0)
                torch.testing.assert_close(ours[row], expected)


def test_drawn_patches_depend_on_seed_and_id_alone():
    model = VARIANTS["open_clip-gelu"]().eval()
    images = pixels(model, batch=3)
    with torch.no_grad():
        whole = embedder(model, "official-openai", seed=1).encode_image(images, [7, 8, 9])
        alone = embedder(model, "official-openai", seed=1).encode_image(images[2:], [9])
        other = embedder(model, "official-openai", seed=2).encode_image(images, [7, 8, 9])
    torch.testing.assert_close(whole[2:], alone)
    assert not torch.allclose(whole, other)


def test_a_function_of_the_callers_own_is_an_embedding():
    model = VARIANTS["open_clip-gelu"](torch.float64).eval()
    images = pixels(model, dtype=torch.float64)
    with torch.no_grad():
        ours = embedder(model, lambda first, patches: patches.mean(1)).encode_image(images)
        torch.testing.assert_close(ours, library_patches(model, images).mean(1))
        with pytest.raises(ShapeError, match=r"gave \(2, 16, 24\), expected \(2, width\)"):
            embedder(model, lambda first, patches: patches).encode_image(images)


def library_text(model, tokens):
    if hasattr(model, "encode_text"):
        return model.encode_text(tokens)
    output = model.get_text_features(input_ids=tokens, return_dict=True)
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def test_only_the_dfn_rule_leaves_the_sum_unnormalised():
    assert [name for name, rule in EMBEDDINGS.items() if not rule.normalized] == ["official-dfn-378"]


def test_a_frozen_model_can_be_scored():
    model = VARIANTS["open_clip-gelu"]().eval().requires_grad_(False)
    with pytest.raises(ConfigError, match="is frozen"):
        adapt(model)
    assert embedder(model, "class").encode_image(pixels(model)).shape == (2, 24)


@pytest.mark.parametrize("embedding", ["pooled", "official-openai", "official-metaclip", "official-dfn-378"])
@pytest.mark.parametrize("name", ["open_clip-gelu", "timm-siglip", "transformers-clip", "openai"])
def test_every_library_runs_mmvp_under_every_embedding_the_same_each_time(tmp_path, name, embedding):
    root = mmvp_folder(tmp_path, pairs=1)
    model = VARIANTS[name]()
    torch.manual_seed(3)
    first = mmvp_vlm(model, preprocess, tokenize, root, embedding)
    torch.manual_seed(4)
    second = mmvp_vlm(model, preprocess, tokenize, root, embedding)
    assert first == second and first.embedding == image_embedding(embedding).name
    assert model.training and all(parameter.grad is None for parameter in model.parameters())


def test_half_precision_weights_are_scored_in_float32(tmp_path):
    root = mmvp_folder(tmp_path, pairs=1)
    half = VARIANTS["open_clip-gelu"](torch.bfloat16)
    copy = VARIANTS["open_clip-gelu"]()
    copy.load_state_dict(half.state_dict())
    assert mmvp_vlm(half, preprocess, tokenize, root) == mmvp_vlm(copy, preprocess, tokenize, root)
    assert {value.dtype for value in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("legacy", [True, False])
def test_scoring_is_exact_float32_and_leaves_torchs_settings(monkeypatch, legacy):
    backends = torch.backends
    before = backends.cuda.matmul.fp32_precision
    try:
        if legacy:
            torch.set_float32_matmul_precision("high")
        else:
            backends.cuda.matmul.fp32_precision = "tf32"
        monkeypatch.setattr(backends.cudnn, "benchmark", True)
        with evaluating(VARIANTS["open_clip-gelu"]()), torch.autocast("cpu", dtype=torch.bfloat16):
            pass
        with torch.autocast("cpu", dtype=torch.bfloat16), evaluating(VARIANTS["open_clip-gelu"]()) as model:
            assert backends.cuda.matmul.fp32_precision == backends.mkldnn.matmul.fp32_precision == "ieee"
            assert not backends.cudnn.benchmark and backends.cudnn.deterministic
            assert not torch.is_grad_enabled()
            assert model.encode_image(pixels(model)).dtype == torch.float32
        assert backends.cuda.matmul.fp32_precision == "tf32" and backends.cudnn.benchmark
    finally:
        torch.set_float32_matmul_precision("highest")
        backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("mean,warned", [(OPENAI_MEAN, False), ((0.5, 0.5, 0.5), True)])
def test_pixels_on_another_models_scale_are_warned_of(recwarn, mean, warned):
    model = VARIANTS["open_clip-gelu"]()
    model.visual.image_mean, model.visual.image_std = mean, OPENAI_STD  # as open_clip's factory sets them
    embedder(model)
    words = (
        r"preprocess turns white into \[1.93, 2.07, 2.15\], the model's own mean and deviation into \[1.86"
    )
    assert any(re.match(words, str(warning.message)) for warning in recwarn) == warned


def test_a_transformers_processor_serves_as_the_transform():
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": IMAGE}, crop_size=IMAGE)
    image = Image.new("RGBA", (40, 50), (200, 100, 50, 255))
    ours = image_transform(processor)(image)
    theirs = processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
    assert ours.shape == (3, IMAGE, IMAGE) and torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["open_clip-gelu", "timm-siglip", "transformers-clip", "openai"])
@pytest.mark.parametrize("shape", [(3, 48, 48), (1, IMAGE, IMAGE)])
def test_images_that_the_model_does_not_take_are_named(name, shape):
    embedder = Embedder(VARIANTS[name]().eval(), lambda image: torch.zeros(shape), tokenize)
    with pytest.raises(
        ConfigError, match=rf"images \({shape[0]}, .*, the model takes \(3, 32, 32\): give the m"
    ):
        embedder.encode_image(embedder.transform(Image.new("RGB", (4, 4)))[None])


def test_pixels_that_are_not_normalised_are_named():
    embedder = Embedder(VARIANTS["openai"]().eval(), lambda image: torch.full((3, 4, 4), 220.0), tokenize)
    with pytest.raises(ConfigError, match="preprocess gives pixels up to 220, not normalised"):
        embedder.transform(Image.new("RGB", (4, 4)))


@pytest.mark.parametrize("size", [(32, 35), (43, 64), (60, 38), (32, 40), (20, 30)])
def test_the_crop_of_a_transformers_processor_is_torchvisions(size):
    """Its own may lie a pixel beside it."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": IMAGE}, crop_size=IMAGE)
    theirs = image_transform_v2(PreprocessCfg(size=IMAGE), is_train=False)(image)
    torch.testing.assert_close(image_transform(processor)(image), theirs, atol=0.05, rtol=0)
    padding = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=IMAGE)
    assert image_transform(padding)(image).shape == (3, IMAGE, IMAGE)


@pytest.mark.parametrize("name", ["transformers-clip", "transformers-siglip"])
def test_a_transformers_tokenizer_pads_to_the_models_length(name):
    model = VARIANTS[name]().eval()
    ours = Embedder(model, preprocess, word_tokenizer(64, 63))
    tokens = ours.tokenize(TEXTS)
    assert tokens["input_ids"].shape == (2, 8)
    with torch.no_grad():
        # SigLIP is trained without a mask, CLIP with one.
        given = {"input_ids": tokens["input_ids"]}
        if name == "transformers-clip":
            given["attention_mask"] = tokens["attention_mask"]
        theirs = model.get_text_features(**given)
        theirs = theirs if isinstance(theirs, torch.Tensor) else theirs.pooler_output
        assert torch.equal(ours.encode_text(tokens), theirs)


@pytest.mark.parametrize("name", ["open_clip-gelu", "timm-siglip", "transformers-clip", "openai"])
def test_scores_are_those_of_plain_code_by_the_official_rules(tmp_path, name):
    """The benchmark in plain PyTorch: one statement at a time against both images of its pair."""
    root = mmvp_folder(tmp_path, pairs=2)
    model = VARIANTS[name]().eval()
    result = mmvp_vlm(model, preprocess, tokenize, root)
    right = 0
    with torch.no_grad(), open(root / "Questions.csv", newline="") as opened:
        rows = list(csv.reader(opened))[1:]
        for place, (first, second) in enumerate(zip(rows[::2], rows[1::2], strict=True)):
            files = [root / "MLLM_VLM Images" / first[1] / f"{row[0]}.jpg" for row in (first, second)]
            images = torch.stack([preprocess(Image.open(file)) for file in files])
            image_features = normalize(library_embedding(model, images), dim=-1)
            good = []
            for row, score in zip((first, second), result.pairs[place].scores, strict=True):
                text = library_text(model, tokenize([f"a photo of {row[2]}"]))
                share = (100 * image_features @ normalize(text, dim=-1).T).T.softmax(dim=-1)[0, 0]
                # 100 times the float32 rounding of a cosine.
                assert score == pytest.approx(float(share), abs=1e-4)
                picked = "img1" if share > 0.5 else "img2"
                good.append(picked == ("img1" if int(row[0]) % 2 == 1 else "img2"))
            assert result.pairs[place].correct == all(good)
            right += all(good)
    assert result.average == pytest.approx(100 * right / 18)
