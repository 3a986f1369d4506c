"""The microworld's scenes, judged by its tiny UNet from its tiny CLIP's guesses."""

import pytest
import torch

from diva_rs import judge_images
from diva_rs.captions import Guesses, Judge
from diva_rs.microworld import Microworld, Tokenizer, World, vocabulary
from diva_rs.report import write_judged

SCENES = World("validation", 32)
NAMES = ("colour", "position")


def share(name, words):
    """The share of scenes whose word is right, and five standard errors above that of a guess."""
    attribute = "object" if name == "subject" else name
    right = sum(word == SCENES.scene(number).value(attribute) for number, word in enumerate(words))
    chance = 1 / len(vocabulary().words(name))
    return right / len(SCENES), chance + 5 * (chance * (1 - chance) / len(SCENES)) ** 0.5


@pytest.fixture(scope="module")
def models():
    return Microworld()


def test_clips_guesses_know_the_objects(models):
    guesses = Guesses(models.clip(), Tokenizer(), vocabulary())
    found = guesses(SCENES.images(range(len(SCENES))))
    assert all(list(guess) == list(vocabulary().names()) for guess in found)
    right, threshold = share("subject", [guess["subject"] for guess in found])
    assert right > threshold
    assert guesses(SCENES.images([5]))[0] == found[5]
    assert guesses.identity() == Guesses(models.clip(), Tokenizer(), vocabulary()).identity()


def test_the_unet_judges_what_clip_cannot_see(models, tmp_path):
    def encode(texts):
        with torch.no_grad():
            return models.text_encoder(Tokenizer()(texts)).last_hidden_state

    judge = Judge(models.teacher(), draws=4, encode=encode)
    guess = Guesses(models.clip(), Tokenizer(), vocabulary())
    loader = list(SCENES.batches(8))
    judged = judge_images(judge, loader, vocabulary(), tmp_path / "judged", guess, rounds=1, names=NAMES)
    assert list(judged) == sorted(key for batch in loader for key in batch["ids"])
    for place, name in enumerate(NAMES):
        verdicts = [judged[SCENES.first + number][place] for number in range(len(SCENES))]
        right, threshold = share(name, [verdict.set.words[verdict.best] for verdict in verdicts])
        assert right > threshold and judged.reliability[name].above
        assert sum(verdict.weight > 0 for verdict in verdicts) > len(SCENES) / 2
    page = write_judged(judged, tmp_path / "judged").read_text()
    assert "position" in page and "Not judged: subject " in page
