"""`judge_images`: each image is judged once, and the folder is the same after any interruption."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from builders.diffusion import tiny_pipeline
from builders.keyed_judge import IMAGES, WORDS, KeyedJudge, images, judged
from builders.pictures import picture
from builders.run_ranks import environment
from builders.small import small_teacher
from diva_rs import Teacher
from diva_rs.captions import ContrastSet, Judge, Judgements
from diva_rs.data import folder_loader
from diva_rs.errors import ConfigError, DataError
from diva_rs.run.judging import judge_images

pytestmark = pytest.mark.invariant


def files(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class Stops:
    """A loader that ends in an error after some batches."""

    def __init__(self, after):
        self.after = after

    def __iter__(self):
        yield from images()[: self.after]
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight") / "judged"
    judged(folder)
    return files(folder)


def test_every_image_is_judged(tmp_path):
    judge = KeyedJudge()
    found = judged(tmp_path / "judged", judge)
    assert list(found) == judge.judged == list(range(100, 112)) and len(found) == IMAGES
    assert str(found.facts.accounting) == "12 images used, none left out"
    assert found.vocabulary == WORDS and [v.set.name for v in found[100]] == ["colour", "size"]
    assert all(v.best == key % len(v.set) for key in found for v in found[key])
    assert found.facts.made_by["rounds"] == 2 and found.facts.made_by["judge"]["timestep_range"] == [0, 500]


def test_an_interrupted_run_resumes(tmp_path, straight):
    folder = tmp_path / "judged"
    for after in (1, 1, 3):
        with pytest.raises(KeyboardInterrupt):
            judged(folder, loader=Stops(after))
    with pytest.raises(DataError, match="a run that has not ended"):
        Judgements.load(folder)
    judge = KeyedJudge()
    found = judged(folder, judge)
    assert judge.judged == [109, 110, 111] and len(found) == IMAGES
    assert files(folder) == straight
    again = KeyedJudge()
    judged(folder, again)
    assert not again.judged and files(folder) == straight
    judged(folder, again, overwrite=True)
    assert len(again.judged) == IMAGES and files(folder) == straight


@pytest.mark.parametrize("batch", [1, 5, 12])
def test_batches_and_their_order_do_not_matter(tmp_path, straight, batch):
    judged(tmp_path / "judged", loader=images(batch=batch)[::-1])
    assert files(tmp_path / "judged") == straight


def test_contrast_sets_of_each_image(tmp_path):
    """From a dict, a function and the batches, as `Judge.judge` judges them; resumed with the same alone."""
    judge = Judge(small_teacher(), draws=2, encode=lambda texts: torch.ones(len(texts), 8, 24))
    lens = ContrastSet("lens", ("a wide lens", "a long lens"))
    light = ContrastSet("light", ("day", "dusk", "night"))
    sets = {key: [lens, light] if key % 2 else [light] for key in range(100, 106)}
    loader = images(6)
    latents = torch.cat([judge.teacher.encode(2 * batch["images"] - 1) for batch in loader])
    straight = judge.judge(latents, list(sets), [*sets.values()])
    told = [{**batch, "captions": [sets[key] for key in batch["ids"]]} for batch in loader]
    for name, captions, given in (("a", sets, loader), ("b", sets.__getitem__, loader), ("c", None, told)):
        judge_images(judge, given[:1], captions, tmp_path / name)
        found = judge_images(judge, given, captions, tmp_path / name)
        assert found.vocabulary is None and list(found) == list(sets)
        for key in sets:
            assert [each.set for each in found.evidence[key]] == [each.set for each in straight.evidence[key]]
            for each, other in zip(found.evidence[key], straight.evidence[key], strict=True):
                assert each.losses == pytest.approx(other.losses, rel=1e-5)
    with pytest.raises(DataError, match=r"sample 2 \(id 102\) has other contrast sets"):
        judge_images(judge, loader, {**sets, 102: [lens]}, tmp_path / "a")
    with pytest.raises(ConfigError, match=r"vocabulary was None, is '"):
        judge_images(judge, loader, WORDS, tmp_path / "a")
    with pytest.raises(DataError, match="batch 0 is a dict, a dict with 'ids' and 'captions' is needed"):
        judge_images(judge, loader, None, tmp_path / "c")


def test_an_image_that_comes_twice_is_judged_once(tmp_path, straight):
    judge = KeyedJudge()
    twice = [
        {
            name: value + value if name == "ids" else value.repeat(2, 1, 1, 1)
            for name, value in images(12, 12)[0].items()
        }
    ]
    assert len(judged(tmp_path / "judged", judge, loader=[*twice, *images()])) == len(judge.judged) == IMAGES


def test_new_images_are_judged_too(tmp_path, straight):
    judged(tmp_path / "judged", loader=images()[:2])
    assert len(Judgements.load(tmp_path / "judged")) == 6
    judge = KeyedJudge()
    judged(tmp_path / "judged", judge)
    assert len(judge.judged) == 6 and files(tmp_path / "judged") == straight


def test_what_makes_the_losses_must_be_the_same(tmp_path):
    folder = tmp_path / "judged"
    judged(folder, loader=images()[:1])
    with pytest.raises(ConfigError, match="judge seed was None, is 1"):
        judged(folder, KeyedJudge(seed=1))
    with pytest.raises(ConfigError, match=r"rounds was 2, is 3; names was \['colour', 'size'\]"):
        judged(folder, rounds=3, names=["colour"])
    other = KeyedJudge()
    torch.nn.init.ones_(next(other.teacher.denoiser.parameters()))
    with pytest.raises(ConfigError, match=r"teacher 1 UNet2DConditionModel was '\w+', is '\w+'\)"):
        judged(folder, other)
    changed = images()
    changed[0]["images"][1] = 0.5
    with pytest.raises(DataError, match=r"images of batch 0, sample 1 \(id 101\) has other pixels"):
        judged(folder, loader=changed)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({"ids": [1]}, "'images' or 'pixel_values' is needed"),
        ({"images": torch.zeros(1, 3, 16, 16)}, "batch 0 has no ids"),
        ({"pixel_values": torch.zeros(1, 3, 16, 16), "ids": [1]}, "batch 0 has no images"),
        ({"images": torch.full((1, 3, 16, 16), 255.0), "ids": [1]}, "value 255 is outside"),
    ],
)
def test_what_cannot_be_judged_is_named(tmp_path, batch, said):
    with pytest.raises(DataError, match=said):
        judged(tmp_path / "judged", loader=[batch])


@pytest.mark.parametrize("encode", [None, len])
def test_a_teacher_is_the_same_before_and_after_its_parts_are_loaded(tmp_path, encode):
    tiny_pipeline().save_pretrained(tmp_path / "teacher")
    judge = KeyedJudge()
    judge.teacher, judge.encode = Teacher(tmp_path / "teacher"), encode
    judged(tmp_path / "judged", judge, loader=images()[:1])
    judge.teacher.texts(["a"])
    assert len(judged(tmp_path / "judged", judge)) == IMAGES
    parts = list(Judgements.load(tmp_path / "judged").facts.made_by["teacher"])
    text = ["3 CLIPTextModel"] if encode is None else []
    assert parts == ["1 UNet2DConditionModel", "2 AutoencoderKL", *text, "schedule", "precision"]


def test_what_is_not_judged_keeps_its_guess(tmp_path):
    found = judged(tmp_path / "judged", names=["colour"])
    assert [verdict.set.name for verdict in found[100]] == ["colour"]
    assert found.given[100] == {"subject": "car", "size": "big"}
    assert found[101][0].set.captions[0] == "a photo of a red big car"


def test_latents_of_the_loader_are_used(tmp_path):
    batch = images(1, 1)[0]
    found = judged(tmp_path / "judged", loader=[{**batch, "latents": torch.zeros(1, 4, 8, 8)}])
    assert len(found) == 1


@pytest.fixture
def photos(tmp_path):
    """Seven images, and three files that are none; some lie in the share of each of two ranks."""
    (tmp_path / "photos").mkdir()
    for number in range(7):
        picture(number).save(tmp_path / "photos" / f"{number}.png")
    for name in ("3a.png", "3b.png", "5a.png"):
        (tmp_path / "photos" / name).write_bytes(b"no image")
    return tmp_path / "photos"


def test_unreadable_images_are_counted(tmp_path, photos):
    loader = folder_loader(photos, 2, 16, 0, scale=None, on_bad_image="skip", shuffle=False)
    found = judged(tmp_path / "judged", loader=loader)
    assert len(found) == 7 and set(found) < set(loader.dataset.ids.tolist())
    assert str(found.facts.accounting).startswith("7 images used, 3 left out: 3 unreadable (")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_ranks_judge_what_one_does(tmp_path, photos):
    torchrun = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc_per_node=2"]
    for name, launcher in (("alone", [sys.executable]), ("together", torchrun)):
        command = [*launcher, "-m", "builders.keyed_judge", str(tmp_path / name), str(photos)]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    assert files(tmp_path / "together") == files(tmp_path / "alone")
    assert len(Judgements.load(tmp_path / "together")) == 7


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kills_while_files_are_written_change_no_byte(tmp_path, straight):
    command = [sys.executable, "-m", "builders.keyed_judge", str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    runs, kills = json.loads(done.stdout)
    assert kills >= 10
    for run in range(runs):
        assert files(tmp_path / str(run)) == straight
    assert len(list(tmp_path.iterdir())) == runs
