"""A tokenizer that is not the model's is refused by name; those of every library are taken."""

import open_clip
import pytest
import torch
import transformers
from open_clip.transform import PreprocessCfg, image_transform_v2

from builders.clips import IMAGE, clip_variants
from builders.mmvp import mmvp_folder
from builders.small import small_clip
from builders.texts import tokenize, word_tokenizer
from diva_rs import export
from diva_rs.errors import ConfigError
from diva_rs.evaluation import Embedder, mmvp_vlm, zero_shot_folder
from diva_rs.evaluation.text_side import TextSide

TEXTS = ["a photo of one cat", "a photo of two dogs facing left"]
WITH_END = ["open_clip-gelu", "open_clip-custom-text", "timm-siglip", "transformers-clip", "openai"]
EVERY = [*WITH_END, "open_clip-coca", "transformers-metaclip2", "transformers-siglip"]
VARIANTS = clip_variants()
preprocess = image_transform_v2(PreprocessCfg(size=IMAGE), is_train=False)


def rows(length=8, end=63, start=62):
    """A tokenizer with rows of another length, or another end token."""

    def words(texts):
        ids = torch.zeros(len(texts), length, dtype=torch.int64)
        for row, text in zip(ids, texts, strict=True):
            found = [1 + sum(map(ord, word)) % 30 for word in text.split()[-length + 2 :]]
            row[: len(found) + 2] = torch.tensor([start, *found, end])
        return ids

    return words


def without_pad_token():
    tokenizer = word_tokenizer(64, 63)
    tokenizer.pad_token = None
    return tokenizer


def tokens_of(name, tokenizer):
    return Embedder(VARIANTS[name]().eval(), preprocess, tokenizer).tokenize(TEXTS)


@pytest.mark.parametrize("name", EVERY)
def test_the_models_own_rows_are_taken(name):
    assert torch.equal(tokens_of(name, tokenize), tokenize(TEXTS))
    ids = tokens_of(name, word_tokenizer(64, 63))["input_ids"]
    assert ids.shape == (2, 8) and ids[0].tolist() == [0, 15, 14, 14, 2, 63, 63, 63]


@pytest.mark.parametrize("length", [6, 12])
@pytest.mark.parametrize("name", EVERY)
def test_rows_of_another_length_are_refused(name, length):
    with pytest.raises(
        ConfigError, match=f"rows of {length} tokens, the model's text tower takes 8: give the tok"
    ):
        tokens_of(name, rows(length))


@pytest.mark.parametrize("name", EVERY)
def test_tokens_beyond_the_vocabulary_are_refused(name):
    with pytest.raises(ConfigError, match="gives the token 64, the model's vocabulary is 0 to 63"):
        tokens_of(name, rows(end=64))
    with pytest.raises(ConfigError, match="gives the token -1"):
        tokens_of(name, rows(start=-1))


@pytest.mark.parametrize("name", WITH_END)
def test_a_text_without_the_models_end_token_is_refused(name):
    with pytest.raises(ConfigError, match="'a photo of one cat' do not hold the end token 63"):
        tokens_of(name, rows(end=39))
    with pytest.raises(ConfigError, match="end token 63"):
        tokens_of(name, rows(end=39, start=63))  # it is the start there


@pytest.mark.parametrize("name", ["open_clip-coca", "transformers-siglip"])
def test_towers_that_read_at_a_fixed_place_need_no_end_token(name):
    assert tokens_of(name, rows(end=39)).shape == (2, 8)


@pytest.mark.parametrize("words", [3, 40, 300])
def test_a_foreign_vocabulary_is_refused(words):
    with pytest.raises(ConfigError, match=rf"\(.*\) has {words} tokens, the model 64: it is another model's"):
        tokens_of("transformers-siglip", word_tokenizer(words, words - 1))
    with pytest.raises(ConfigError, match="another model's"):
        tokens_of("open_clip-gelu", open_clip.get_tokenizer("ViT-B-32"))


def test_padding_is_on_the_right_whatever_the_tokenizer_says():
    tokenizer = word_tokenizer(64, 63)
    tokenizer.padding_side = "left"
    assert tokens_of("transformers-clip", tokenizer)["input_ids"][0].tolist() == [
        0,
        15,
        14,
        14,
        2,
        63,
        63,
        63,
    ]


def test_siglip_reads_lower_case_texts():
    seen = []
    tokens = TextSide(lower=True).checked(lambda texts: seen.extend(texts) or tokenize(texts))(["A Cat"])
    assert seen == ["a cat"] and torch.equal(tokens, tokenize(["a cat"]))
    assert TextSide.of(VARIANTS["transformers-siglip"]()).lower
    assert not TextSide.of(VARIANTS["transformers-clip"]()).lower


ODD = ["the cat\u2019s \u201chat\u201d", "black &amp; white", "a \ufb01sh", "two  cats\u2026", "A DOG_HOUSE."]


def test_every_librarys_tokenizer_cleans_texts_alike(tmp_path):
    """OpenAI's and open_clip's mend quotes, ligatures and entities, those of transformers do not."""
    text = {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1}
    model = open_clip.model.CLIP(embed_dim=20, vision_cfg=vision, text_cfg=text)
    words = transformers.AutoTokenizer.from_pretrained(export.to_transformers(model, tmp_path / "x"))
    own, theirs = (
        Embedder(model, preprocess, tokenizer).tokenize(ODD)
        for tokenizer in (open_clip.get_tokenizer("ViT-B-32"), words)
    )
    for row, other in zip(own.tolist(), theirs["input_ids"].tolist(), strict=True):
        end = row.index(49407)
        assert row[: end + 1] == other[: end + 1]


def test_siglip_reads_texts_without_punctuation():
    embedder = Embedder(VARIANTS["transformers-siglip"]().eval(), preprocess, word_tokenizer(64, 63))
    first, second = embedder.tokenize(["A_cat's hat.", "a cats hat"])["input_ids"]
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "tokenizer,message",
    [
        (None, "tokenizer is a NoneType: give the tokenizer of the model"),
        ("ViT-B-32", "tokenizer is a str"),
        (transformers.CLIPImageProcessor(), "tokenizer is a CLIPImageProcessor.*, which has no tokenizer"),
        (without_pad_token(), "has no pad token"),
        (lambda texts: [[1, 2]], "gave a list for 2 texts"),
        (lambda texts: torch.zeros(1, 8, dtype=torch.int64), r"gave torch\.int64 \(1, 8\) for 2 texts"),
        (lambda texts: torch.zeros(2, 8), r"gave torch\.float32 \(2, 8\) for 2 texts"),
    ],
)
def test_what_is_no_tokenizer_is_named(tokenizer, message):
    with pytest.raises(ConfigError, match=message):
        tokens_of("transformers-clip", tokenizer)


def test_an_exported_folder_has_no_tokenizer_and_the_scores_say_so(tmp_path):
    """transformers makes a tokenizer of a few words where the files are missing."""
    folder = export.to_transformers(small_clip(), tmp_path / "exported")
    processor = transformers.CLIPImageProcessor.from_pretrained(folder)
    model = transformers.CLIPModel.from_pretrained(folder)
    root = mmvp_folder(tmp_path / "mmvp", pairs=1)
    with pytest.raises(ConfigError, match="which has no tokenizer: give the tokenizer of the model"):
        mmvp_vlm(model, processor, processor, root)
    with pytest.raises(ConfigError, match="folder without tokenizer files, such as an exported one"):
        zero_shot_folder(model, processor, word_tokenizer(3, 2), root / "MLLM_VLM Images")


@pytest.mark.parametrize("name", ["open_clip-gelu", "open_clip-custom-text"])
def test_a_tower_that_gives_its_tokens_too_is_scored_the_same(tmp_path, name):
    root, model = mmvp_folder(tmp_path, pairs=1), VARIANTS[name]()
    before = mmvp_vlm(model, preprocess, tokenize, root)
    model.visual.output_tokens = True
    if hasattr(model, "text"):
        model.text.output_tokens = True
    assert mmvp_vlm(model, preprocess, tokenize, root) == before
