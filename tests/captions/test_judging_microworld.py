"""The shipped diffusion model judges scenes that it was not trained on."""

import pytest
import torch

from diva_rs.captions import Guesses, Judge
from diva_rs.microworld.captions import Tokenizer, vocabulary
from diva_rs.microworld.dataset import pictures
from diva_rs.microworld.pretrained import Microworld
from diva_rs.microworld.scenes import scene

SEEN = ("border", "position", "colour", "size")
UNSEEN = ("direction", "glyph")


@pytest.mark.slow
def test_the_shipped_model_says_what_unseen_scenes_show():
    world, tokenizer, words = Microworld(), Tokenizer(), vocabulary()
    scenes = [scene(991, index) for index in range(64)]
    images = pictures(scenes)

    @torch.no_grad()
    def encode(texts):
        return world.text_encoder(tokenizer(texts)).last_hidden_state

    teacher = world.teacher()
    judge = Judge(teacher, draws=3, encode=encode)
    start = Guesses(world.clip(), tokenizer, words)(images)
    judged = judge.describe(teacher.encode(2 * images - 1), range(64), words, start, names=SEEN + UNSEEN)
    for place, name in enumerate(SEEN):
        right = sum(
            judged[key][place].set.words[judged[key][place].best] == one.value(name)
            for key, one in enumerate(scenes)
        )
        assert right >= 0.85 * len(scenes), name
        assert judged.reliability[name].weight > 0.5, name
    assert all(judged.reliability[name].weight == 0 for name in UNSEEN)
