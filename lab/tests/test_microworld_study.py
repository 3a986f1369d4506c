"""Pretraining and the study: scores of planted features, runs that resume, Student's intervals."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from diva_rs import ConfigError, DataError, WeightsError
from diva_rs.microworld import SPLITS, VALUES, World, new_clip, scene
from diva_rs.microworld.captions import DETAILS
from diva_rs.microworld.models import MEAN, STD, new_vae
from diva_rs.microworld.pretrained import SHIPPED, Microworld
from diva_rs.microworld.scores import zero_shot_objects
from lab.cli import main
from lab.pretraining.balance import Balance
from lab.pretraining.data import Pixels
from lab.pretraining.denoiser import encode
from lab.pretraining.margins import margins
from lab.pretraining.run import QUICK, pretrain
from lab.pretraining.vae import reconstruction_error
from lab.study import ABLATIONS, STUDY, Arm, Measure, Summary, TrainingImages, ablate, change
from lab.study.data import unseen
from lab.study.directions import Direction, directions
from lab.study.runs import read_rows, run_arm
from lab.world import NINE, StudyWorld
from lab.worlds import MicroworldData
from lab.worlds.even import Even


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints of a few steps, two CLIPs."""
    place = tmp_path_factory.mktemp("world")
    pretrain(place, QUICK, clips=2)
    return place


@pytest.fixture(scope="module")
def measure():
    return Measure("validation", images=96, fitted=96, per_pattern=2)


def test_pretraining_resumes_and_refuses_other_settings(folder, capsys):
    before = {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}
    assert sorted(before) == [
        "clip-1.safetensors",
        "clip.safetensors",
        "dit.safetensors",
        "text_encoder.safetensors",
        "unet.safetensors",
        "vae.safetensors",
    ]
    capsys.readouterr()
    assert main(["pretrain", "--output-dir", str(folder), "--quick", "--clips", "2"]) == 0
    shown, manifest = capsys.readouterr(), json.loads((folder / "manifest.json").read_text())
    assert " 4/4 " not in shown.err  # nothing was trained
    assert json.loads(shown.out) == manifest["validation"]
    assert {file.name: file.read_bytes() for file in folder.glob("*.safetensors")} == before
    assert manifest["settings"]["vae"] == 4 and set(manifest["validation"]) == {
        "clip",
        "clip-1",
        "vae",
        "unet",
    }
    with pytest.raises(ConfigError, match="seed=0, now seed=1"):
        pretrain(folder, QUICK, seed=1)


def test_a_second_pretraining_gives_the_same_weights(folder, tmp_path):
    again = tmp_path / "again"
    pretrain(again, QUICK, clips=1)
    for name in ("clip", "vae", "unet", "text_encoder", "dit"):
        assert (again / f"{name}.safetensors").read_bytes() == (folder / f"{name}.safetensors").read_bytes()


def test_directions_are_those_of_planted_features(monkeypatch):
    """Border has an axis of the embedding and of the texts, size another one of the embedding alone."""
    scenes = [scene(0, number) for number in range(512)]

    def pictures(items):
        shown = torch.zeros(len(items), 3, 2, 2)
        shown[:, 0, 0] = torch.tensor([[2.0 * one.border - 1, 2.0 * one.size - 1] for one in items])
        return shown * STD + MEAN

    class Images:
        values = VALUES

        def __len__(self):
            return len(scenes)

        def images(self, numbers):
            return pictures([scenes[number] for number in numbers])

        def labels(self, numbers):
            return torch.tensor([[getattr(scenes[n], name) for name in VALUES] for n in numbers])

    class Planted:
        def encode_image(self, images, normalize):
            shown = images[:, 0, 0] * torch.tensor([0.2, 3.0])
            return nn.functional.normalize(torch.cat([shown, torch.ones(len(images), 1)], 1))

        def encode_text(self, tokens, normalize):
            bordered = (tokens == word).any(1).float()
            texts = torch.stack([2 * bordered - 1, 0 * bordered, 0.5 + 0 * bordered], 1)
            return nn.functional.normalize(texts)

    pair = next(pair for pair in MicroworldData().pairs("validation", 1) if pair.attribute == "border")
    with_it, without = sorted(zip(pair.scenes, pair.statements, strict=True), key=lambda one: -one[0].border)
    words = [set(MicroworldData.tokenizer([line])[0].tolist()) for _, line in (with_it, without)]
    word = max(words[0] - words[1])
    monkeypatch.setattr(MicroworldData, "pictures", lambda self, items: pictures(items))
    found = directions(Planted(), Images(), per_pattern=8)
    assert found.keys() == set(DETAILS)
    border, size = found["border"], found["size"]
    assert border.read > 0.99 and border.images > 0.9 and border.right == border.alone == 100
    assert size == Direction(0.0, 0.0, 0.0, 0.0)  # no words say it


def test_captions_name_an_attribute_more_often_the_fewer_of_its_pairs_are_right(monkeypatch):
    data, asked = MicroworldData(), []
    own = {pair.attribute: pair.pattern for pair in data.pairs("train", 1)}
    scores = {**dict.fromkeys(own, 100.0), "border": 0.0, "fill": 25.0, "size": 30.0, "count": 90.0}
    right = {own[name]: value for name, value in scores.items()}

    def score_pairs(clip, pairs, *others):
        asked.append(len(pairs))
        return SimpleNamespace(patterns=right)

    monkeypatch.setattr("lab.pretraining.balance.score_pairs", score_pairs)
    even = Even(aim=30.0, band=10.0, most=0.2, every=3, per_pattern=2)
    balance = Balance(even, data, new_clip(0))
    named = [balance(step) for step in range(6)]
    assert asked == [18, 18]  # at the steps 0 and 3
    assert named[0].keys() == set(DETAILS) and named[0] == named[5]
    shares = [named[0][name] for name in ("border", "fill", "size", "count", "colour")]
    assert shares == [0.2, pytest.approx(0.1), 0.0, 0.0, 0.0]
    right[own["border"]] = 50.0
    assert balance(7)["border"] == 0.2 and balance(9)["border"] == 0.0


def test_checkpoints_come_back_as_models_and_teachers(folder):
    world = StudyWorld(folder)
    assert world.clips == 2
    one, other = world.clip(0), world.clip(1)
    assert not torch.equal(one.visual.proj, other.visual.proj)
    assert world.clip(0) is not one  # a copy: training one leaves the next as it was
    latents = torch.randn(4, 16, 6, 6)
    for kind in ("unet", "dit", "untrained"):
        assert world.teacher(kind).latent_shape == (16, 6, 6)
    assert world.loss_ratio(world.teacher(), latents) == pytest.approx(1.0)
    for wrong in (lambda: world.teacher("sd"), lambda: world.clip(2), lambda: world.clip(-1)):
        with pytest.raises(ConfigError):
            wrong()
    with pytest.raises(DataError, match="python -m lab pretrain"):
        Microworld(folder / "nothing")


def test_probes_read_what_is_planted_and_no_more(monkeypatch):
    """Features that hold the colour and noise: every kind's colour probe is right, the others guess."""
    noise = torch.Generator().manual_seed(0)

    def planted(clip, batches, features):
        asked.append(len(list(batches)))
        world = measured.probes.fitted if len(asked) == 1 else measured.asked
        colours = world.labels(range(len(world)))[:, list(VALUES).index("colour")]
        rows = torch.cat(
            [nn.functional.one_hot(colours, 6), torch.randn(len(colours), 4, generator=noise)], 1
        )
        return dict.fromkeys(features, rows), []

    asked = []
    measured = Measure("validation", images=512, fitted=512, per_pattern=2)
    monkeypatch.setattr("lab.study.probes.collect", planted)
    scores = measured(new_clip(0))
    for kind in ("pooled", "class", "patches"):
        assert scores[f"probe_{kind}/colour"] == 100.0
        for name, values in VALUES.items():
            if name not in ("colour", "object"):
                # Five standard errors of a guess.
                share = 1 / len(values)
                limit = 100 * (share + 5 * np.sqrt(share * (1 - share) / 512))
                assert scores[f"probe_{kind}/{name}"] < limit


def test_scores_are_the_same_twice_and_leave_the_model_alone(measure):
    clip = new_clip(0)
    before = copy.deepcopy(clip.state_dict())
    scores = measure(clip)
    assert scores == measure(clip)
    assert all(torch.equal(before[key], value) for key, value in clip.state_dict().items())
    assert all(0 <= score <= 100 for score in scores.values())
    own = [scores[key] for key in scores if key.startswith("probe_class/")]
    assert len(own) == 9 and scores["probe_class"] == pytest.approx(np.mean(own))


def test_scenes_that_are_asked_about_are_neither_trained_on_nor_in_the_pairs():
    measure = Measure("test", images=8, fitted=8, per_pattern=3)
    pairs = {SPLITS["test"][0] + n for n in range(9 * 3)}
    assert [pair.scenes[0] for pair in measure.pairs] == [scene(0, number) for number in sorted(pairs)]
    asked = {measure.asked.first + n for n in range(8)}
    fitted = {measure.probes.fitted.first + n for n in range(8)}
    training = set(range(1 << 20, (1 << 20) + 4096)) | set(range(65536))
    assert not asked & pairs and not (asked | pairs) & fitted and not fitted & training


def test_mismatched_batches_carry_another_images_latents():
    images = TrainingImages(new_vae(0).requires_grad_(False), unseen(12))
    right = next(iter(images.loader(4, seed=1)))
    wrong = next(iter(images.loader(4, seed=1, mismatched=True)))
    assert right["ids"] == wrong["ids"] and torch.equal(right["pixel_values"], wrong["pixel_values"])
    rows = [number - images.dataset.first for number in right["ids"]]
    assert torch.equal(right["latents"], images.latents[rows])
    assert torch.equal(wrong["latents"], images.latents[[(row + 1) % 12 for row in rows]])
    assert len(images.loader(4, seed=0, share=0.5)) == 1
    first, second = images.loader(4, seed=0), images.loader(4, seed=0)
    second.set_epoch(1)
    assert [b["ids"] for b in first] != [b["ids"] for b in second]


@pytest.mark.parametrize("name", [*STUDY, "dit", "class", "all", "one draw"])
def test_every_kind_of_arm_trains_the_tower(name, folder):
    arm = {
        **STUDY,
        "dit": Arm(teacher="dit"),
        "class": Arm({"condition": "class"}),
        "all": Arm({"condition": "all"}),
        "one draw": Arm({"draws": 1}),
    }[name]
    world = StudyWorld(folder)
    images = TrainingImages(world.vae, unseen(32))
    clip = world.clip()
    before = clip.visual.transformer.resblocks[0].mlp.c_fc.weight.detach().clone()
    losses = run_arm(arm, clip, world, images, seed=0, steps=6)
    assert np.isfinite(list(losses.values())).all()
    moved = not torch.equal(before, clip.visual.transformer.resblocks[0].mlp.c_fc.weight)
    # The anchor has no gradient where nothing has moved from it yet; what rounding leaves may move a weight.
    assert moved or name in ("anchored, text alone", "anchor alone")
    text = [key for key in clip.state_dict() if not key.startswith("visual.")]
    original = world.clip().state_dict()
    assert all(torch.equal(original[key], clip.state_dict()[key]) for key in text)


def test_ablations_resume_and_refuse_a_damaged_file(folder, tmp_path, capsys):
    place = tmp_path / "ablation"
    kept = (place, 2, "validation", folder, 2, 32, 64)
    summary = ablate("denoiser", *kept)
    rows = read_rows(place / "runs.jsonl")
    assert [(row["arm"], row["seed"]) for row in rows] == [
        (arm, seed) for seed in (0, 1) for arm in ABLATIONS["denoiser"]
    ]
    for file in ("summary.csv", "summary.md", "summary.png"):
        assert (place / file).stat().st_size > 100
    capsys.readouterr()
    again = ablate("denoiser", *kept)
    assert capsys.readouterr().out == "" and again.table() == summary.table()
    text = (place / "runs.jsonl").read_text().splitlines()
    (place / "runs.jsonl").write_text("\n".join([*text[:4], "{}"]))
    with pytest.raises(DataError, match="line 5"):
        ablate("denoiser", *kept)
    with pytest.raises(ConfigError, match=r"steps=2, now steps=3: use another folder"):
        ablate("denoiser", place, 2, "validation", folder, 3, 32, 64)
    (place / "settings.json").write_text("[]x")
    with pytest.raises(DataError, match=r"settings\.json is damaged"):
        ablate("denoiser", *kept)
    with pytest.raises(ConfigError, match="name='colour'"):
        ablate("colour", place)


def test_no_images_is_no_training(folder):
    world = StudyWorld(folder)
    clip, original = world.clip(), world.clip().state_dict()
    assert run_arm(Arm(share=0.0), clip, world, TrainingImages(world.vae, unseen(8)), seed=0) == {}
    assert all(torch.equal(original[key], value) for key, value in clip.state_dict().items())


def test_intervals_are_students():
    generator = np.random.default_rng(0)
    before = generator.normal(30, 2, 10)
    after = before + generator.normal(1, 0.5, 10)
    of = change(before.tolist(), after.tolist())
    reference = stats.ttest_rel(after, before).confidence_interval(0.95)
    assert (of.low, of.high) == pytest.approx((reference.low, reference.high))
    assert change([1.0], [2.0]).high == np.inf
    with pytest.raises(DataError, match="one pair per seed"):
        change([1.0], [])


def test_the_paragraph_says_what_rises_what_falls_and_what_is_lost():
    def rows(arm, gain, lost):
        return [
            {
                "arm": arm,
                "seed": seed,
                "before": {"mini_mmvp": 30.0, "zero_shot": 97.0},
                "after": {"mini_mmvp": 30.0 + gain + 0.1 * seed, "zero_shot": 97.0 - lost - 0.1 * seed},
            }
            for seed in range(5)
        ]

    both = Summary(rows("good", 5, 0) + rows("bad", -5, 9) + rows("none", -0.2, 0), ["good", "bad", "none"])
    text = both.paragraph()
    assert "rises with good (+5.2" in text and "falls with bad (-4.8" in text
    assert "no change: none" in text and "zero-shot is lost with bad." in text
    with pytest.raises(DataError, match="no run of 'other'"):
        Summary(rows("good", 5, 0), ["other"])


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"clips": 3, "scaling_factor": 1}', '{"clips": [], "scaling_factor": "x"}']
)
def test_a_damaged_manifest_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        _ = Microworld(tmp_path).manifest


def test_weights_of_another_model_are_refused(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "clip.safetensors").write_bytes((folder / "vae.safetensors").read_bytes())
    with pytest.raises(WeightsError, match=r"clip\.safetensors"):
        Microworld(tmp_path).clip()


@pytest.mark.parametrize("of", [SHIPPED, NINE])
def test_the_shipped_checkpoints_are_near_their_manifest(of):
    """On a few scenes: fresh weights have ten times the error, and margins around zero."""
    world, scenes = StudyWorld(of), World("validation", 64)
    pixels = Pixels(scenes)
    told = world.manifest["validation"]
    assert reconstruction_error(world.vae, pixels) == pytest.approx(told["vae"], rel=0.25)
    found = margins(world.unet, world.text_encoder, scenes, encode(world.vae, pixels), draws=2)
    assert found["loss"] == pytest.approx(told["unet"]["loss"], rel=0.25)
    assert found["shuffled"] == pytest.approx(told["unet"]["shuffled"], rel=0.5)
    if of == NINE:  # represents every attribute; its manifest has at least 0.23
        assert all(found[name] > 0.03 * found["loss"] for name in VALUES)


def test_the_blind_spots_of_the_shipped_clips_are_even():
    world = StudyWorld(NINE)
    assert world.clips == 10
    for name in world.manifest["clips"]:
        told = world.manifest["validation"][name]
        patterns = [value for score, value in told.items() if score.startswith("mini_mmvp/")]
        assert len(patterns) == 9 and min(patterns) > 10 and max(patterns) < 50 and told["zero_shot"] > 94
    scenes = World("validation", 256, start=1 << 12)
    found = zero_shot_objects(world.clip(9), scenes, template=MicroworldData().template)
    assert found.accuracy > 94


@pytest.mark.slow  # a minute of processor time
def test_the_shipped_checkpoints_are_what_their_manifest_says():
    """The figures of VAE and UNet; those of CLIP take longer and are written by the same function."""
    world = StudyWorld()
    size = sum(file.stat().st_size for file in SHIPPED.iterdir())
    assert size <= 10_000_000 and world.clips >= 1
    scenes = World("validation", 1024)
    pixels = Pixels(scenes)
    latents = encode(world.vae, pixels)
    told = world.manifest["validation"]
    assert reconstruction_error(world.vae, pixels) == pytest.approx(told["vae"], rel=1e-3)
    found = margins(world.unet, world.text_encoder, scenes, latents)
    assert found == pytest.approx(told["unet"], rel=1e-2, abs=1e-4)


def test_the_manifest_names_its_parts(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["clips"] == ["clip", "clip-1"] and manifest["made"]["vae"]["parameters"] > 100_000
