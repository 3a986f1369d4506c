"""Caption feedback in the study: labels and controls, what was judged, and every arm."""

import json

import numpy as np
import pytest
import torch

from diva_rs.captions import Judgements
from diva_rs.microworld import new_clip
from diva_rs.microworld.captions import DETAILS, vocabulary
from diva_rs.microworld.models import new_vae
from lab.pretraining.run import QUICK, pretrain
from lab.study import CAPTION_CHOICES, CAPTIONS, TrainingImages, ablate, judge_images
from lab.study.captions import Captions, accuracy, calibration, certain, guessed, keys_of, truth
from lab.study.data import unseen
from lab.study.runs import run_arm
from lab.world import StudyWorld


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    place = tmp_path_factory.mktemp("caption-world")
    pretrain(place, QUICK)
    return StudyWorld(place)


@pytest.fixture(scope="module")
def images():
    return TrainingImages(new_vae(0), unseen(24))


@pytest.fixture(scope="module")
def right(images):
    words = vocabulary()
    return Judgements({key: certain(values, words) for key, values in truth(images).items()}, words)


def test_the_truth_is_that_of_the_scenes_and_is_judged_right(images, right):
    values = truth(images)
    for number, key in enumerate(keys_of(images)):
        scene = images.dataset.scene(number)
        assert values[key]["subject"] == scene.value("object")
        assert right.values(key) == {name: scene.value(name) for name in DETAILS}
    for row in accuracy(right, images).values():
        assert (row["accuracy"], row["draws"], row["settled"]) == (100.0, 2.0, 100.0)
        assert row["weight"] > 0.9
    [(likely, share, sets)] = calibration(right, images)
    assert likely > 0.99 and share == 1.0 and sets == len(DETAILS) * 24


def test_labels_are_another_images_or_clips_own(images, right):
    guesses = guessed(new_clip(0), images)
    keys = keys_of(images)
    others = Captions(mixed=1.0)._labels(images, right, guesses)
    some = Captions(mixed=0.5)._labels(images, right, guesses)
    own = Captions("guessed")._labels(images, right, guesses)
    kept = [some.values(key) == {**right.values(key), "subject": guesses[key]["subject"]} for key in keys]
    assert 0 < sum(kept) < len(keys)
    for key, after in zip(keys, [*keys[1:], keys[0]], strict=True):
        subject = {"subject": guesses[key]["subject"]}
        assert others.values(key) == {**right.values(after), **subject}
        # A word that is guessed of every image carries no weight.
        assert subject.items() <= own.values(key).items() <= guesses[key].items()
    assert (
        Captions("judged")._labels(images, right, guesses).values(keys[0])["subject"]
        == (guesses[keys[0]]["subject"])
    )


def test_judgements_are_kept(world, tmp_path):
    images = TrainingImages(world.vae, unseen(8))
    first = judge_images(world, images, tmp_path / "judged")
    again = judge_images(world, images, tmp_path / "judged")
    assert list(first) == list(again) == keys_of(images)
    assert np.array_equal(first[keys_of(images)[0]][0].losses, again[keys_of(images)[0]][0].losses)


@pytest.mark.parametrize(
    "arm", [*CAPTIONS.values(), *CAPTION_CHOICES.values()], ids=[*CAPTIONS, *CAPTION_CHOICES]
)
def test_every_caption_arm_trains_the_tower(arm, world, images, right):
    clip = world.clip()
    before = clip.visual.transformer.resblocks[0].mlp.c_fc.weight.detach().clone()
    losses = run_arm(arm, clip, world, images, seed=0, steps=4, judged=right)
    assert np.isfinite(list(losses.values())).all()
    assert not torch.equal(before, clip.visual.transformer.resblocks[0].mlp.c_fc.weight)


def test_the_command_writes_what_was_judged(world, tmp_path):
    """Of models that were hardly trained nothing is reliable, and the run is whole."""
    summary = ablate("captions", tmp_path, 1, "validation", world.folder, 2, 16, 64)
    assert (tmp_path / "judged.png").stat().st_size > 5000
    found = json.loads((tmp_path / "judged.json").read_text())["accuracy"]
    assert list(found) == list(DETAILS) and all(0 <= row["accuracy"] <= 100 for row in found.values())
    assert summary.arms == list(CAPTIONS)
