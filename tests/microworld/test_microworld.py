"""The world: deterministic, without leaks, and such that its questions have answers."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from diva_rs import ConfigError, DataError
from diva_rs.microworld import (
    DETAILS,
    PATTERNS,
    SPLITS,
    VALUES,
    Scene,
    Tokenizer,
    World,
    caption,
    detailed_caption,
    mini_mmvp,
    new_clip,
    pairs,
    pictures,
    render,
    scene,
    short_caption,
    zero_shot_objects,
)

GOLDEN = Path(__file__).parent / "golden_world.json"


def test_scenes_and_pictures_are_those_of_the_golden_file():
    """On every machine and with every NumPy: attributes exactly, pixels but for one step of rounding."""
    golden = json.loads(GOLDEN.read_text())
    for index, wanted in golden["scenes"].items():
        assert list(scene(golden["seed"], int(index)).labels()) == wanted["labels"]
        sums = render(scene(golden["seed"], int(index))).astype(np.int64).sum(axis=(0, 1))
        assert np.abs(sums - wanted["sums"]).max() <= 48 * 48 // 100


def test_a_scene_depends_on_seed_and_index_alone():
    assert scene(3, 5) == scene(3, 5)
    assert len({scene(seed, index) for seed in range(3) for index in range(200)}) == 600


def test_attributes_are_uniform_and_independent():
    labels = World("train", 6000).labels(range(6000)).numpy()
    for column, values in enumerate(VALUES.values()):
        shares = np.bincount(labels[:, column], minlength=len(values)) / 6000
        # Five standard errors of a share: a true 1/n fails once in a million.
        assert np.abs(shares - 1 / len(values)).max() < 5 * np.sqrt(1 / len(values) / 6000)
    correlations = np.corrcoef(labels.T) - np.eye(len(VALUES))
    assert np.abs(correlations).max() < 5 / np.sqrt(6000)


def test_a_number_that_names_no_scene_is_refused():
    for seed, index in ((-1, 0), (0, -1), (0, 1 << 63)):
        with pytest.raises(DataError, match="whole number"):
            scene(seed, index)
    with pytest.raises(TypeError):
        scene(0, 0.5)


def test_splits_share_no_scene_number():
    taken = sorted(SPLITS.values())
    assert all(first + length <= after for (first, length), (after, _) in itertools.pairwise(taken))
    worlds = [World(split, 500) for split in SPLITS]
    assert len({world.scene(number) for world in worlds for number in range(500)}) == 1500


def test_a_split_has_an_end():
    with pytest.raises(ConfigError, match="one of train, validation, test is needed"):
        World("dev", 1)
    with pytest.raises(ConfigError, match="has 1 to"):
        World("test", SPLITS["test"][1] + 1)
    with pytest.raises(ConfigError, match="number=2: the world has 2 scenes"):
        World("test", 2).images([2])


@pytest.mark.parametrize("attribute", VALUES)
def test_every_attribute_shows(attribute):
    """Two scenes that differ in one attribute differ in their pictures, whichever the values are."""
    values = VALUES[attribute]
    for number in range(20):
        base = scene(1, number)
        shown = [render(replace(base, **{attribute: value})) for value in range(len(values))]
        for a in range(len(values)):
            for b in range(a):
                changed_pixels = np.abs(shown[a].astype(int) - shown[b]).max(axis=2) > 24
                assert changed_pixels.sum() >= 4, (attribute, values[a], values[b], number)


def test_objects_keep_clear_of_the_frame_and_of_the_letter():
    """All that is painted lies where it may: the frame's two pixels are free of everything else."""
    for number in range(200):
        base = replace(scene(2, number), border=0, texture=0)
        picture = render(base).astype(int)
        ground = picture[0, 0]
        edge = np.concatenate([picture[:2].reshape(-1, 3), picture[-2:].reshape(-1, 3)])
        assert np.abs(edge - ground).max() <= 1
        without = {letter: render(replace(base, glyph=letter)).astype(int) for letter in (0, 1)}
        differing = np.abs(without[0] - without[1]).max(axis=2) > 1
        rows, columns = np.nonzero(differing)
        assert np.ptp(rows) < 12 and np.ptp(columns) < 12  # only the letter changed


def test_captions_name_the_attributes_given():
    fish = Scene(object=3, colour=2, count=1)
    assert caption(fish) == "a photo of a fish"
    assert caption(fish, ["count", "colour"]) == "a photo of a fish numbering two coloured blue"
    assert set(caption(fish, DETAILS).split()) == set(detailed_caption(fish, (0, 1)).split())
    assert detailed_caption(fish, (0, 1)) != detailed_caption(fish, (0, 2))  # another order
    with pytest.raises(ConfigError, match="did you mean 'colour'"):
        caption(fish, ["color"])


def test_short_captions_name_an_attribute_at_the_rate_given():
    named = [len(short_caption(Scene(), 0.2, (9, n)).split()) // 2 - 2 for n in range(2000)]
    assert abs(np.mean(named) - 0.2 * len(DETAILS)) < 5 * np.sqrt(9 * 0.2 * 0.8 / 2000)
    assert short_caption(Scene(), 0.0, (9, 0)) == caption(Scene())
    assert len(short_caption(Scene(), 1.0, (9, 0)).split()) == 23


def test_the_tokenizer_reads_every_caption_and_names_what_it_cannot_read():
    tokenizer = Tokenizer()
    ids = tokenizer(World("train", 50).detailed_captions(range(50)))
    assert ids.shape == (50, 26) and ids.max() == tokenizer.vocab_size - 1
    assert (ids.argmax(dim=1) == 24).all()  # the end token, where open_clip's text tower reads
    with pytest.raises(DataError, match="'zebra'"):
        tokenizer("a photo of a zebra")
    with pytest.raises(DataError, match="at most 24 fit"):
        tokenizer(" ".join(["a"] * 25))


def test_pairs_differ_in_one_attribute_and_cover_all_differences():
    listed = pairs(World("test", 180), 20)
    assert [pair.pattern for pair in listed] == [name for name in PATTERNS for _ in range(20)]
    for pair in listed:
        assert pair.scenes[0].differing(pair.scenes[1]) == [pair.attribute]
        assert pair.statements[0] != pair.statements[1]
    with pytest.raises(ConfigError, match="need 180 scenes"):
        pairs(World("test", 179), 20)


class Knowing(nn.Module):
    """A CLIP that is right on the patterns it knows and sees nothing else: a planted truth."""

    def __init__(self, world, per_pattern, known):
        super().__init__()
        listed = pairs(world, per_pattern)
        self.rows = {}
        for number, pair in enumerate(listed):
            for scene_, statement, sign in zip(pair.scenes, pair.statements, (1.0, -1.0), strict=True):
                code = torch.zeros(len(listed), 2)
                code[number, 0] = 1.0
                if pair.attribute in known:
                    code[number, 1] = sign
                self.rows[self._key(pictures([scene_])[0])] = code.flatten()
                self.rows[self._key(Tokenizer()(statement)[0]), number] = code.flatten()
        self.asked = 0

    @staticmethod
    def _key(tensor):
        return tensor.mul(8).round().to(torch.int64).numpy().tobytes()

    def encode_image(self, pixels, normalize=False):
        return torch.stack([self.rows[self._key(row * 0.25 + 0.5)] for row in pixels])

    def encode_text(self, tokens, normalize=False):
        codes = [self.rows[self._key(row), (self.asked + n) // 2] for n, row in enumerate(tokens)]
        self.asked += len(tokens)
        return torch.stack(codes)


def test_mini_mmvp_scores_exactly_what_was_planted():
    world = World("validation", 36)
    result = mini_mmvp(Knowing(world, 4, {"colour", "glyph"}), world, 4)
    known = {"Color and Appearance": 100.0, "Texts": 100.0}
    assert result.patterns == {name: known.get(name, 0.0) for name in PATTERNS}
    assert result.average == pytest.approx(200 / 9)


def test_an_untrained_clip_guesses():
    clip = new_clip(seed=0)
    assert mini_mmvp(clip, World("validation", 180), 20).average < 40
    score = zero_shot_objects(clip, World("validation", 200))
    assert score.accuracy < 30


def test_batches_feed_post_train(tmp_path):
    import diva_rs
    from builders.small import small_teacher

    world = World("train", 8)
    result = diva_rs.post_train(
        new_clip(seed=0), small_teacher(), list(world.batches(4)), progress=False, pixels="unit", lr=1e-4
    )
    assert result.report["samples"] == 8
