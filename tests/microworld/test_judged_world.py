"""The microworld's scenes, judged into a folder by its tiny UNet from its tiny CLIP's guesses."""

import torch

from diva_rs import judge_images
from diva_rs.captions import Guesses, Judge
from diva_rs.microworld import Microworld, Tokenizer, World, vocabulary
from diva_rs.report import write_judged

NAMES = ("colour", "position")


def test_the_unet_judges_what_clip_cannot_see(tmp_path):
    models, scenes, words = Microworld(), World("validation", 32), vocabulary()

    def encode(texts):
        with torch.no_grad():
            return models.text_encoder(Tokenizer()(texts)).last_hidden_state

    judge = Judge(models.teacher(), draws=4, encode=encode)
    guess = Guesses(models.clip(), Tokenizer(), words)
    loader = list(scenes.batches(8))
    judged = judge_images(judge, loader, words, tmp_path / "judged", guess, rounds=1, names=NAMES)
    assert list(judged) == [key for batch in loader for key in batch["ids"]]
    for place, name in enumerate(NAMES):
        verdicts = [judged[key][place] for key in judged]
        found = [verdict.set.words[verdict.best] for verdict in verdicts]
        right = [word == scenes.scene(number).value(name) for number, word in enumerate(found)]
        chance = 1 / len(words.words(name))
        error = (chance * (1 - chance) / len(right)) ** 0.5
        assert sum(right) / len(right) > chance + 5 * error and judged.reliability[name].above
        assert sum(verdict.weight > 0 for verdict in verdicts) > len(right) / 2
    page = write_judged(judged, tmp_path / "judged").read_text()
    assert "position" in page and "Not judged: subject " in page
