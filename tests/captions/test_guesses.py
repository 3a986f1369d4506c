"""CLIP's guesses: for each name the caption whose embedding is nearest to the image's."""

import pytest
import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch.nn.functional import normalize

from builders.small import small_clip
from builders.texts import tokenize
from diva_rs import ConfigError
from diva_rs.captions import Attribute, Guesses, Vocabulary

WORDS = Vocabulary(
    {"colour": ("red", "blue", "green"), "count": Attribute(("one", "two"), plural=("two",))},
    subjects=("cat", "dog", "mouse/mice", "cow"),
)


@pytest.mark.parametrize(
    "words", [WORDS, Vocabulary(WORDS.attributes, subjects=["cat"]), Vocabulary(WORDS.attributes)]
)
def test_the_nearest_caption_is_the_guess(words):
    torch.manual_seed(0)
    clip, images = small_clip().double(), torch.rand(12, 3, 1, 1).round().expand(-1, -1, 32, 32).double()
    mean, std = (torch.tensor(v)[:, None, None] for v in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    embedded = normalize(clip.encode_image((images - mean) / std), dim=1)
    guesses = Guesses(clip, tokenize, words)(images)
    assert len({tuple(guess.items()) for guess in guesses}) > 1 and len(guesses) == 12
    for image, guess in zip(embedded, guesses, strict=True):
        values = {"subject": words.subjects[0]} if len(words.subjects) == 1 else {}
        for name in words.names():
            made = words.set_of(name, values)
            near = normalize(clip.encode_text(tokenize(made.captions)), dim=1) @ image
            assert guess[name] == made.words[int(near.argmax())]
            values = {"subject": guess["subject"]} if "subject" in guess else values
        assert set(guess) == {*words.names()}
    assert clip.training and guesses == [
        one for image in images for one in Guesses(clip, tokenize, words)(image[None])
    ]


@pytest.mark.hostile
def test_a_model_without_a_text_tower_cannot_guess():
    with pytest.raises(ConfigError, match="has no text tower"):
        Guesses(small_clip().visual, tokenize, WORDS)
